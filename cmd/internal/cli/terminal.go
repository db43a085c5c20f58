package cli

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"strings"
	"time"
	"unicode"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
)

// watchEvery is how often a live view looks again. A server with 200,000
// consumers needs a quarter of a second for each look.
const watchEvery = 2 * time.Second

// terminal returns the size of the terminal that stream is, and whether it is
// one.
func terminal(stream any) (columns, rows int, ok bool) {
	f, isFile := stream.(*os.File)
	if !isFile {
		return 0, 0, false
	}
	size, err := unix.IoctlGetWinsize(int(f.Fd()), unix.TIOCGWINSZ)
	if err != nil {
		return 0, 0, false
	}
	columns, rows = int(size.Col), int(size.Row)
	if columns == 0 || rows == 0 { // one that does not say
		columns, rows = 80, 24
	}
	return columns, rows, true
}

// live shows what look returns, again and again in the same place, until ctx
// ends. What fails is shown, and tried again: the server may be restarting.
func live(ctx context.Context, out io.Writer, look func(context.Context) (string, error)) error {
	tick := time.NewTicker(watchEvery)
	defer tick.Stop()
	for {
		text, err := look(ctx)
		if ctx.Err() != nil {
			break
		}
		if err != nil {
			text = printable(err.Error()) + "\n"
		}
		columns, rows, _ := terminal(out)
		text = fit(text, columns, rows-1) + fmt.Sprintf("\x1b[Kevery %s; Ctrl-C ends", watchEvery)
		if _, err := io.WriteString(out, "\x1b[H"+text+"\x1b[J"); err != nil {
			return fmt.Errorf("writing to the terminal: %w", err)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
		}
		if ctx.Err() != nil {
			break
		}
	}
	_, err := fmt.Fprintln(out)
	return err
}

// fit cuts text to the screen, so that a line of it is one there, and clears what
// was behind each before.
func fit(text string, columns, rows int) string {
	var b strings.Builder
	lines := strings.Split(strings.TrimSuffix(text, "\n"), "\n")
	for i, line := range lines {
		if i == rows-1 && len(lines) > rows {
			line = fmt.Sprintf("… %d lines more than fit", len(lines)-i)
		}
		if i == rows {
			break
		}
		if runes := []rune(line); len(runes) > columns && columns > 0 {
			line = string(runes[:columns-1]) + "…"
		}
		b.WriteString(line + "\x1b[K\n")
	}
	return b.String()
}

// printable makes text from a server or a file fit for a terminal: what would
// steer it is replaced.
func printable(text string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsGraphic(r) {
			return r
		}
		return unicode.ReplacementChar
	}, text)
}

// errNoAnswer says that a person is needed.
var errNoAnswer = usageError{fmt.Errorf("--force asks whether it is meant: add --yes where there is no terminal")}

// confirmable tells whether a question can be answered, before anything else is
// tried.
func confirmable(cmd *cobra.Command, yes bool) error {
	if _, _, ok := terminal(cmd.InOrStdin()); !yes && !ok {
		return errNoAnswer
	}
	return nil
}

// confirm asks on the terminal whether it is meant, and takes yes alone for yes.
func confirm(cmd *cobra.Command, yes bool) error {
	if yes {
		return nil
	}
	if err := confirmable(cmd, yes); err != nil {
		return err
	}
	fmt.Fprint(cmd.ErrOrStderr(), "Type yes to go on: ")
	line, err := bufio.NewReader(io.LimitReader(cmd.InOrStdin(), 64)).ReadString('\n')
	if answer := strings.TrimSpace(line); err != nil || answer != "yes" {
		return fmt.Errorf("nothing was done: the answer was not yes")
	}
	return nil
}
