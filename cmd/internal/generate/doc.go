// Command generate writes what is generated from the code: the comments of the
// configuration, docs/reasons.md, docs/configuration.md, docs/cli and the list of
// modules that the binary links. `make generate` runs it from the module's
// root; its own test fails where a file is out of date.
//
// Nothing here is part of the product. The command keeps no state and is not
// concurrent.
package main
