package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"text/tabwriter"
	"time"

	"google.golang.org/grpc/connectivity"

	"github.com/hallmark-ca/hallmark/test/bench/caller"
)

// ready waits until the connection is made.
func ready(ctx context.Context, c caller.Conn) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	for s := c.GetState(); s != connectivity.Ready; s = c.GetState() {
		if s == connectivity.TransientFailure {
			return errors.New("refused")
		}
		if !c.WaitForStateChange(ctx, s) {
			return ctx.Err()
		}
	}
	return nil
}

// summary is a server's rounds as their medians.
type summary struct {
	Server       string        `json:"server"`
	Rate         float64       `json:"rate"`
	P50          time.Duration `json:"p50"`
	P99          time.Duration `json:"p99"`
	CPU          time.Duration `json:"cpu"`
	Certificates int           `json:"certificates"`
	Errors       int           `json:"errors"`
}

// ratio compares the first server's CPU for a certificate with the second's,
// round by round.
type ratio struct {
	Median float64 `json:"median"`
	Least  float64 `json:"least"`
	Most   float64 `json:"most"`
}

func report(out io.Writer, o options, results []result) error {
	var summaries []summary
	failed := 0
	for _, r := range results {
		s := summarize(r)
		failed += s.Errors
		summaries = append(summaries, s)
	}
	cpu, compared := compare(results)
	if o.json {
		all := map[string]any{"servers": summaries, "rounds": results}
		if compared {
			all["cpuRatio"] = cpu
		}
		enc := json.NewEncoder(out)
		enc.SetIndent("", "  ")
		if err := enc.Encode(all); err != nil {
			return err
		}
	} else if err := table(out, o, summaries, cpu, compared); err != nil {
		return err
	}
	switch {
	case failed > 0:
		return fmt.Errorf("%d requests failed; the first: %s", failed, firstError(results))
	case o.maxRatio > 0 && !compared:
		return errors.New("there is no ratio to hold against --max-ratio")
	case o.maxRatio > 0 && cpu.Median > o.maxRatio:
		return fmt.Errorf("CPU for a certificate is %.2f times the peer's, more than %.2f", cpu.Median, o.maxRatio)
	}
	return nil
}

func table(out io.Writer, o options, summaries []summary, cpu ratio, compared bool) error {
	how := fmt.Sprintf("on %d connections", o.connections)
	if o.reconnect {
		how = "with a connection for each request"
	}
	fmt.Fprintf(out, "%d callers %s, %d rounds of %s, medians\n", o.callers, how, o.rounds, o.duration)
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "SERVER\tCERTIFICATES\tERRORS\tRATE/S\tP50\tP99\tSERVER CPU EACH")
	for _, s := range summaries {
		each := "not counted"
		if s.CPU > 0 {
			each = s.CPU.Round(time.Microsecond).String()
		}
		fmt.Fprintf(w, "%s\t%d\t%d\t%.0f\t%s\t%s\t%s\n", s.Server, s.Certificates, s.Errors, s.Rate,
			s.P50.Round(10*time.Microsecond), s.P99.Round(10*time.Microsecond), each)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	if compared {
		fmt.Fprintf(out, "CPU for a certificate, %s / %s: %.2f (rounds: %.2f to %.2f)\n", summaries[0].Server, summaries[1].Server, cpu.Median, cpu.Least, cpu.Most)
	}
	return nil
}

func summarize(r result) summary {
	s := summary{
		Server: r.Server,
		Rate:   median(r.Rounds, func(r round) float64 { return r.Rate }),
		P50:    median(r.Rounds, func(r round) time.Duration { return r.P50 }),
		P99:    median(r.Rounds, func(r round) time.Duration { return r.P99 }),
		CPU:    median(r.Rounds, func(r round) time.Duration { return r.CPU }),
	}
	for _, r := range r.Rounds {
		s.Certificates += r.Certificates
		s.Errors += r.Errors
	}
	return s
}

func median[T cmp.Ordered](rounds []round, of func(round) T) T {
	var values []T
	for _, r := range rounds {
		values = append(values, of(r))
	}
	slices.Sort(values)
	if len(values) == 0 {
		var zero T
		return zero
	}
	return values[(len(values)-1)/2]
}

// compare needs two servers whose CPU was counted in every round.
func compare(results []result) (ratio, bool) {
	if len(results) != 2 {
		return ratio{}, false
	}
	var ratios []float64
	for i := range min(len(results[0].Rounds), len(results[1].Rounds)) {
		a, b := results[0].Rounds[i].CPU, results[1].Rounds[i].CPU
		if a == 0 || b == 0 {
			return ratio{}, false
		}
		ratios = append(ratios, float64(a)/float64(b))
	}
	if len(ratios) == 0 {
		return ratio{}, false
	}
	slices.Sort(ratios)
	return ratio{ratios[(len(ratios)-1)/2], ratios[0], ratios[len(ratios)-1]}, true
}

func firstError(results []result) string {
	for _, r := range results {
		for _, round := range r.Rounds {
			if round.FirstError != "" {
				return round.FirstError
			}
		}
	}
	return ""
}
