// Command load drives CreateCertificate and measures what it costs: rate,
// latency, and the server's CPU for each certificate. It can drive Istio's own
// CA beside Hallmark, round by round in turn, and print the ratios: absolute
// figures drift with the machine, ratios of one run do not.
//
// Without --target it starts what it needs: an API server, a registry, Hallmark
// with its gate on enforce, its ledger and its review cache, pods with signed
// images, and with --peer the tool istio-ca.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"syscall"
	"time"
)

const usage = `Usage: load [flags]

Drives CreateCertificate and measures rate, latency and server CPU.

Examples, from test/:
  go run ./load                                  # Hallmark alone, 32 callers on 8 connections
  go run ./tools/get istio-ca && go run ./load --peer --rounds 9
  go run ./load --peer --reconnect               # a TLS connection for each request, as ztunnel
  go run ./load --target 127.0.0.1:15012 --bundle state/bundle.pem --token-file token --pid 4711

Flags:
`

// options are the flags.
type options struct {
	callers, connections int
	reconnect            bool
	tokens               int
	rounds               int
	duration             time.Duration
	requests             int
	peer                 bool
	maxRatio             float64
	json                 bool
	target, name, bundle string
	tokenFile, identity  string
	pid                  int
}

// Bounds: what a run may be told to do.
const (
	mostCallers     = 1024
	mostConnections = 1024
	mostTokens      = 5000
	mostRounds      = 100
	mostDuration    = 5 * time.Minute
	mostRequests    = 5_000_000
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	switch {
	case errors.Is(err, flag.ErrHelp):
	case err != nil:
		fmt.Fprintln(os.Stderr, "load:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, out, notes io.Writer) error {
	o, err := parse(args, notes)
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "hallmark-load-")
	if err != nil {
		return err
	}
	servers, end, err := o.servers(ctx, dir, notes)
	defer func() {
		end()
		os.RemoveAll(dir)
	}()
	if err != nil {
		return err
	}
	measured, err := measure(ctx, o, servers, notes)
	if err != nil {
		return err
	}
	return report(out, o, measured)
}

func parse(args []string, notes io.Writer) (options, error) {
	var o options
	flags := flag.NewFlagSet("load", flag.ContinueOnError)
	flags.SetOutput(notes)
	flags.Usage = func() { fmt.Fprint(notes, usage); flags.PrintDefaults() }
	flags.IntVar(&o.callers, "callers", 32, "requests at once")
	flags.IntVar(&o.connections, "connections", 8, "connections that the callers share")
	flags.BoolVar(&o.reconnect, "reconnect", false, "a new connection for each request")
	flags.IntVar(&o.tokens, "tokens", 512, "pods, each with a token of its own, that the callers take turns with")
	flags.IntVar(&o.rounds, "rounds", 5, "rounds for each server")
	flags.DurationVar(&o.duration, "duration", 5*time.Second, "length of a round")
	flags.IntVar(&o.requests, "requests", mostRequests, "most requests of a round")
	flags.BoolVar(&o.peer, "peer", false, "drive Istio's CA in turn, and print the ratios")
	flags.Float64Var(&o.maxRatio, "max-ratio", 0, "fail if Hallmark's CPU for a certificate is more than this times the peer's")
	flags.BoolVar(&o.json, "json", false, "print JSON")
	flags.StringVar(&o.target, "target", "", "drive this server, HOST:PORT on loopback, instead of starting any")
	flags.StringVar(&o.name, "server-name", "hallmark.hallmark-system.svc", "name in the target's certificate")
	flags.StringVar(&o.bundle, "bundle", "", "PEM file with the target's roots")
	flags.StringVar(&o.tokenFile, "token-file", "", "file with tokens for the target, one a line")
	flags.StringVar(&o.identity, "identity", "", "SPIFFE ID in the requests to the target; empty asks for no name")
	flags.IntVar(&o.pid, "pid", 0, "process of the target, whose CPU is counted")
	if err := flags.Parse(args); err != nil {
		return o, err
	}
	if flags.NArg() > 0 {
		return o, fmt.Errorf("%q is no flag", flags.Arg(0))
	}
	return o, o.check()
}

func (o options) check() error {
	for _, b := range []struct {
		flag        string
		value, most int
	}{
		{"callers", o.callers, mostCallers}, {"connections", o.connections, mostConnections}, {"tokens", o.tokens, mostTokens},
		{"rounds", o.rounds, mostRounds}, {"requests", o.requests, mostRequests},
	} {
		if b.value < 1 || b.value > b.most {
			return fmt.Errorf("--%s %d: write 1 to %d", b.flag, b.value, b.most)
		}
	}
	if o.duration <= 0 || o.duration > mostDuration {
		return fmt.Errorf("--duration %s: write up to %s", o.duration, mostDuration)
	}
	if o.maxRatio != 0 && !o.peer {
		return errors.New("--max-ratio needs --peer")
	}
	if o.target == "" {
		return nil
	}
	if o.peer || o.bundle == "" || o.tokenFile == "" {
		return errors.New("--target needs --bundle and --token-file, and goes without --peer")
	}
	host, _, err := net.SplitHostPort(o.target)
	if err != nil {
		return fmt.Errorf("--target: %w", err)
	}
	if ip := net.ParseIP(host); ip == nil || !ip.IsLoopback() {
		return fmt.Errorf("--target %s: this floods a server, and goes to loopback addresses only", o.target)
	}
	return nil
}
