package config

import "time"

type bundleFile struct {
	// The PEM file with all trusted roots, relative to the state directory or
	// absolute. It is replaced in one step whenever the roots change.
	File string `json:"file"`
	// How long a client of that file may take to read it again. Before a new root
	// signs, this time must have passed.
	ReadWithin string `json:"readWithin"`
}

// Bundle is where the bundle is published.
type Bundle struct {
	File       string // absolute
	ReadWithin time.Duration
}

const maxReadWithin = 7 * 24 * time.Hour

func (c *checker) bundle(f *bundleFile, state string) Bundle {
	b := Bundle{File: within(state, f.File), ReadWithin: c.duration("bundle.readWithin", f.ReadWithin, maxReadWithin)}
	if b.File == "" {
		c.add("bundle.file", "no file is named", "write bundle.pem")
	}
	return b
}
