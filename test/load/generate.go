package main

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hallmark-ca/hallmark/test/bench/caller"
)

// server is one that is driven.
type server struct {
	name     string
	addr     string
	tls      *tls.Config
	tokens   []string
	identity string
	pid      int // 0: its CPU is not counted
}

// round is what one round measured.
type round struct {
	Certificates int           `json:"certificates"`
	Errors       int           `json:"errors"`
	FirstError   string        `json:"firstError,omitempty"`
	Rate         float64       `json:"rate"`
	P50          time.Duration `json:"p50"`
	P99          time.Duration `json:"p99"`
	CPU          time.Duration `json:"cpu"` // the server's, for each certificate; 0: not counted
}

// result is all rounds of one server.
type result struct {
	Server string  `json:"server"`
	Rounds []round `json:"rounds"`
}

// measure warms each server up, one request a token, and then drives them in
// turn.
func measure(ctx context.Context, o options, servers []*server, notes io.Writer) ([]result, error) {
	results := make([]result, len(servers))
	for i, s := range servers {
		results[i].Server = s.name
		fmt.Fprintf(notes, "warming %s up\n", s.name)
		warm := o
		warm.requests, warm.duration, warm.reconnect = len(s.tokens), mostDuration, false
		r, err := s.drive(ctx, warm)
		if err != nil {
			return nil, err
		}
		if r.Errors > 0 {
			return nil, fmt.Errorf("warming %s up: %d of %d requests failed: %s", s.name, r.Errors, warm.requests, r.FirstError)
		}
	}
	for n := range o.rounds {
		fmt.Fprintf(notes, "round %d of %d\n", n+1, o.rounds)
		// Who goes first goes second in the next round.
		for i := range servers {
			i = (i + n) % len(servers)
			r, err := servers[i].drive(ctx, o)
			if err != nil {
				return nil, err
			}
			results[i].Rounds = append(results[i].Rounds, r)
		}
	}
	return results, nil
}

// drive is one round.
func (s *server) drive(ctx context.Context, o options) (round, error) {
	csrs, err := s.requests()
	if err != nil {
		return round{}, err
	}
	conns, closeAll, err := s.connect(ctx, o)
	if err != nil {
		return round{}, err
	}
	defer closeAll()
	before, err := s.cpu()
	if err != nil {
		return round{}, err
	}
	end, cancel := context.WithTimeout(ctx, o.duration)
	defer cancel()
	var next atomic.Int64
	work := make([]tally, o.callers)
	var wg sync.WaitGroup
	start := time.Now()
	for c := range work {
		wg.Go(func() {
			for end.Err() == nil {
				n := int(next.Add(1)) - 1
				if n >= o.requests {
					return
				}
				work[c].add(s.ask(ctx, o, conns[c%len(conns)], s.tokens[n%len(s.tokens)], csrs[n%len(csrs)]))
			}
		})
	}
	wg.Wait()
	took := time.Since(start)
	if ctx.Err() != nil {
		return round{}, ctx.Err()
	}
	after, err := s.cpu()
	if err != nil {
		return round{}, err
	}
	return sum(work, took, after-before), nil
}

// ask is one request, bounded as a patient client bounds it.
func (s *server) ask(ctx context.Context, o options, conn caller.Conn, token string, csr []byte) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, 15*time.Second)
	defer cancel()
	start := time.Now()
	if o.reconnect {
		var err error
		if conn, err = caller.Dial(s.addr, s.tls); err != nil {
			return 0, err
		}
		defer conn.Close()
	}
	chain, err := conn.Create(ctx, token, csr, 24*3600)
	if err == nil && len(chain) < 2 {
		err = fmt.Errorf("a chain of %d elements", len(chain))
	}
	return time.Since(start), err
}

// requests makes a few signing requests: their making is not what is measured.
func (s *server) requests() ([][]byte, error) {
	csrs := make([][]byte, 16)
	for i := range csrs {
		var err error
		if csrs[i], _, err = caller.NewCSR(s.identity); err != nil {
			return nil, err
		}
	}
	return csrs, nil
}

// connect opens the connections that the callers share, so that no handshake
// falls into the round.
func (s *server) connect(ctx context.Context, o options) ([]caller.Conn, func(), error) {
	var conns []caller.Conn
	closeAll := func() {
		for _, c := range conns {
			c.Close()
		}
	}
	for range o.connections {
		c, err := caller.Dial(s.addr, s.tls)
		if err != nil {
			closeAll()
			return nil, nil, err
		}
		conns = append(conns, c)
		if o.reconnect {
			continue // never used
		}
		c.Connect()
		if err := ready(ctx, c); err != nil {
			closeAll()
			return nil, nil, fmt.Errorf("connecting to %s: %w", s.name, err)
		}
	}
	return conns, closeAll, nil
}

// cpu returns the processor time that the server has had.
func (s *server) cpu() (time.Duration, error) {
	if s.pid == 0 {
		return 0, nil
	}
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", s.pid))
	if err != nil {
		return 0, fmt.Errorf("reading the CPU time of %s: %w", s.name, err)
	}
	// The name in the second field may hold anything, but for a later ")".
	fields := strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+1:]))
	const utime, stime, hertz = 11, 12, 100
	var ticks int64
	for _, f := range []int{utime, stime} {
		n, err := strconv.ParseInt(fields[f], 10, 64)
		if err != nil {
			return 0, fmt.Errorf("reading the CPU time of %s: %w", s.name, err)
		}
		ticks += n
	}
	return time.Duration(ticks) * time.Second / hertz, nil
}

// tally is what one caller counted.
type tally struct {
	times  []time.Duration
	errors int
	first  error
}

func (t *tally) add(took time.Duration, err error) {
	if err == nil {
		t.times = append(t.times, took)
		return
	}
	t.errors++
	if t.first == nil {
		t.first = err
	}
}

func sum(work []tally, took, cpu time.Duration) round {
	var r round
	var all []time.Duration
	for _, t := range work {
		all = append(all, t.times...)
		r.Errors += t.errors
		if t.first != nil && r.FirstError == "" {
			r.FirstError = t.first.Error()
		}
	}
	slices.Sort(all)
	r.Certificates = len(all)
	r.Rate = float64(len(all)) / took.Seconds()
	r.P50, r.P99 = percentile(all, 50), percentile(all, 99)
	if len(all) > 0 {
		r.CPU = cpu / time.Duration(len(all))
	}
	return r
}

// percentile returns the value below or at which p percent of the sorted ones
// are.
func percentile(sorted []time.Duration, p int) time.Duration {
	if len(sorted) == 0 {
		return 0
	}
	return sorted[(len(sorted)*p+99)/100-1]
}
