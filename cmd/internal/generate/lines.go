package main

import (
	"maps"
	"slices"
	"strings"
)

func sortedLines(set map[string]bool) []byte {
	return []byte(strings.Join(slices.Sorted(maps.Keys(set)), "\n") + "\n")
}
