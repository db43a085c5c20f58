// Package house holds the rules of the house as a test: which package may
// import which, which may link the heavy libraries, how large files, functions
// and packages are, and what no file may contain. Exceptions stand in
// exceptions_test.go, each with its reason.
//
// The rules are read from the source; nothing is built and nothing is run. The
// package has no code of its own.
package house
