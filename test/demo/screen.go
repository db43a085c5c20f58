package main

import (
	"fmt"
	"os"
	"regexp"
	"strings"
)

// screen shows what was observed, a ticked line each, and on a terminal also
// what is being done meanwhile.
type screen struct {
	out      *os.File
	terminal bool
	facts    int
}

func newScreen(f *os.File) *screen {
	info, err := f.Stat()
	return &screen{out: f, terminal: err == nil && info.Mode()&os.ModeCharDevice != 0}
}

// erase takes the line of what is being done away.
const erase = "\r\x1b[2K"

func (s *screen) line(text string) {
	if s.terminal {
		fmt.Fprint(s.out, erase)
	}
	fmt.Fprintln(s.out, text)
}

// doing says what goes on, until the next line.
func (s *screen) doing(what string) {
	if s.terminal {
		fmt.Fprintf(s.out, "%s… %s", erase, what)
	}
}

// saw ticks off one fact that was observed.
func (s *screen) saw(format string, args ...any) {
	s.facts++
	s.line("✓ " + fmt.Sprintf(format, args...))
}

func (s *screen) say(format string, args ...any) { s.line(fmt.Sprintf(format, args...)) }

// digest is shown by its first characters, as people read it.
var digest = regexp.MustCompile(`(sha256:[0-9a-f]{12})[0-9a-f]{52}`)

// quote shows what a program printed, digests cut.
func (s *screen) quote(text string) {
	for line := range strings.SplitSeq(strings.TrimRight(text, "\n"), "\n") {
		s.line("    " + digest.ReplaceAllString(line, "$1…"))
	}
}

func (s *screen) failed(what string, err error) { s.line("✗ " + what + ": " + err.Error()) }
