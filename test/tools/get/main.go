// Command get fills the cache with the tools that the tests and the demo run.
//
//	cd test && go run ./tools/get               # all that the tests need
//	cd test && go run ./tools/get -demo         # what the demo needs
//	cd test && go run ./tools/get etcd envoy    # these
//	cd test && go run ./tools/get -list
//
// What is there already costs nothing. It may be stopped and run again.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"text/tabwriter"

	"golang.org/x/sync/errgroup"

	"github.com/hallmark-ca/hallmark/test/tools"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:])
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("get", flag.ExitOnError)
	list := flags.Bool("list", false, "show what there is to get, and get nothing")
	demo := flags.Bool("demo", false, "get what the demo needs")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if *list {
		return printTable()
	}
	wanted, err := choose(flags.Args(), *demo)
	if err != nil {
		return err
	}
	pins, err := tools.Pins()
	if err != nil {
		return err
	}

	lanes := map[string][]tools.Tool{}
	show := newProgress(os.Stderr)
	for _, t := range wanted {
		lanes[t.Lane()] = append(lanes[t.Lane()], t)
		show.add(t)
	}
	showing, done := context.WithCancel(context.Background())
	shown := make(chan struct{})
	go func() { defer close(shown); show.run(showing) }()

	g, ctx := errgroup.WithContext(ctx)
	for _, lane := range lanes {
		g.Go(func() error {
			for _, t := range lane {
				show.started(t.Name)
				fetched, err := tools.Get(ctx, pins, t)
				show.ended(t.Name, fetched, err)
				if err != nil {
					return err
				}
			}
			return nil
		})
	}
	err = g.Wait()
	done()
	<-shown
	return err
}

func choose(names []string, demo bool) ([]tools.Tool, error) {
	var wanted []tools.Tool
	for _, n := range names {
		t, ok := tools.Find(n)
		if !ok {
			return nil, fmt.Errorf("no tool is called %q; -list shows those there are", n)
		}
		wanted = append(wanted, t)
	}
	if len(names) > 0 && !demo {
		return wanted, nil
	}
	for _, t := range tools.Table {
		if (demo && t.Demo) || (!demo && t.On) {
			wanted = append(wanted, t)
		}
	}
	return wanted, nil
}

func printTable() error {
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "NAME\tVERSION\tHERE\tGOT\tFOR")
	for _, t := range tools.Table {
		here, got := "no", "by name"
		if _, err := tools.Path(t.Name); err == nil {
			here = "yes"
		}
		if t.On {
			got = "tests"
		}
		if t.Demo {
			got = "tests, demo"
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", t.Name, t.Version, here, got, t.For)
	}
	return w.Flush()
}
