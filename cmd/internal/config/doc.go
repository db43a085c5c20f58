// Package config reads the one configuration file and makes checked values of
// it.
//
// There are two stages. [File] is the file as it is written: strings, counts
// and booleans, each with the doc comment that the reference and the file of
// `hallmark init` are generated from. [Load] turns it into a [Config], whose
// durations, sizes, addresses and modes are parsed, checked and consistent with
// each other; nothing downstream meets an unchecked value.
//
// Invariants: an unknown or doubled key is an error, never ignored; every
// problem is reported at once, each with its path and what mends it; a value
// that would weaken the product below its floor needs a setting whose name
// begins with unsafe.
//
// The package opens no file but the one that it is given, probes nothing (that
// is `serve --check`), and keeps no state.
package config
