package config

import (
	"fmt"
	"strings"
)

// Problem is one thing that is wrong with a configuration.
type Problem struct {
	Path string // such as images.namespaces.shop; empty for the file as a whole
	What string // what is wrong
	Mend string // what to do about it
}

// String returns path, problem and mend in one line.
func (p Problem) String() string {
	s := p.What
	if p.Path != "" {
		s = p.Path + ": " + s
	}
	if p.Mend != "" {
		s += ": " + p.Mend
	}
	return s
}

// Problems is everything that is wrong, as an error.
type Problems []Problem

// Error returns one line for each problem.
func (p Problems) Error() string {
	lines := make([]string, len(p))
	for i, problem := range p {
		lines[i] = problem.String()
	}
	return fmt.Sprintf("checking configuration: %d wrong:\n  %s", len(p), strings.Join(lines, "\n  "))
}

// checker gathers problems while values are parsed.
type checker struct{ problems Problems }

func (c *checker) add(path, what, mend string) {
	c.problems = append(c.problems, Problem{path, what, mend})
}
