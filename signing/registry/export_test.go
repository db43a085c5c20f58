package registry

// Special is for tests: what kind of address this is.
var Special = special
