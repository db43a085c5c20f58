// Package cli is the command line: it parses flags, calls what does the work,
// and prints.
//
// Invariants: what a person asked for goes to standard output, everything else
// (errors with what mends them, progress, logs) to standard error; -o json is
// for programs and stable; every command works without a terminal (the one
// question, whether a gate is to be forced, has --yes for an answer); a failure is
// never exit code 0.
//
// It holds no rules of the product, keeps no state and uses no globals. One
// command runs in a process.
package cli
