package main

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/hallmark-ca/hallmark/test/tools"
)

func TestPercentile(t *testing.T) {
	t.Parallel()
	var hundred []time.Duration
	for i := range 100 {
		hundred = append(hundred, time.Duration(i+1))
	}
	for _, tt := range []struct {
		sorted []time.Duration
		p      int
		want   time.Duration
	}{{hundred, 50, 50}, {hundred, 99, 99}, {hundred[:1], 99, 1}, {hundred[:3], 50, 2}, {nil, 50, 0}} {
		if got := percentile(tt.sorted, tt.p); got != tt.want {
			t.Errorf("p%d of %d values: %d, want %d", tt.p, len(tt.sorted), got, tt.want)
		}
	}
}

func TestFlags(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		args, want string
	}{
		{"--callers 0", "--callers 0: write 1 to 1024"},
		{"--connections 5000", "--connections"},
		{"--duration 1h", "--duration"},
		{"--max-ratio 0.85", "needs --peer"},
		{"--target 127.0.0.1:1", "needs --bundle"},
		{"--target 192.0.2.1:15012 --bundle b --token-file t", "loopback addresses only"},
		{"--target hallmark.example.org:15012 --bundle b --token-file t", "loopback addresses only"},
		{"extra", `"extra" is no flag`},
	} {
		if _, err := parse(strings.Fields(tt.args), io.Discard); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v, want %q", tt.args, err, tt.want)
		}
	}
	var help bytes.Buffer
	if _, err := parse([]string{"--help"}, &help); err == nil || !strings.Contains(help.String(), "go run ./load --peer") {
		t.Errorf("--help: %v, with an example wanted:\n%s", err, &help)
	}
}

// A run that had errors, or costs more than it may, fails; the ratio is of the
// rounds, not of the sums.
func TestReport(t *testing.T) {
	t.Parallel()
	rounds := func(cpu ...time.Duration) []round {
		var rs []round
		for _, c := range cpu {
			rs = append(rs, round{Certificates: 10, Rate: 5, P50: time.Millisecond, P99: time.Second, CPU: c})
		}
		return rs
	}
	both := []result{{"hallmark", rounds(80, 160, 90)}, {"istio-ca", rounds(100, 200, 100)}}
	for _, tt := range []struct {
		o       options
		results []result
		want    string // of the error
	}{
		{options{maxRatio: 0.85}, both, ""},
		{options{maxRatio: 0.7}, both, "0.80 times the peer's"},
		{options{maxRatio: 0.7}, both[:1], "no ratio"},
		{options{}, []result{{"hallmark", []round{{Errors: 2, FirstError: "refused"}}}}, "2 requests failed; the first: refused"},
	} {
		var out bytes.Buffer
		err := report(&out, tt.o, tt.results)
		if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
			t.Errorf("%+v: %v, want %q", tt.o, err, tt.want)
		}
		if len(tt.results) == 2 && !strings.Contains(out.String(), "hallmark / istio-ca: 0.80 (rounds: 0.80 to 0.90)") {
			t.Errorf("no ratio in:\n%s", &out)
		}
	}
}

// The CPU time is read of any process that there is.
func TestCPU(t *testing.T) {
	t.Parallel()
	s := &server{name: "self", pid: 1}
	if _, err := s.cpu(); err != nil {
		t.Errorf("of process 1: %v", err)
	}
	s.pid = 0
	if d, err := s.cpu(); d != 0 || err != nil {
		t.Errorf("of no process: %v, %v", d, err)
	}
}

func TestRunWithoutRootsFails(t *testing.T) {
	t.Parallel()
	token := t.TempDir() + "/missing"
	if err := run(context.Background(), strings.Fields("--target 127.0.0.1:1 --bundle "+token+" --token-file "+token), io.Discard, io.Discard); err == nil {
		t.Error("a run without roots succeeded")
	}
}

// A short run against the real thing: every request gets its certificate, on one
// connection after another.
func TestDrivesHallmark(t *testing.T) {
	tools.Need(t, "etcd", "kube-apiserver")
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	for _, mode := range []string{"", " --reconnect"} {
		var out, notes bytes.Buffer
		if err := run(ctx, strings.Fields("--json --callers 4 --connections 2 --tokens 4 --rounds 1 --requests 40"+mode), &out, &notes); err != nil {
			t.Fatalf("%v\n%s", err, &notes)
		}
		var got struct {
			Servers []summary `json:"servers"`
		}
		if err := json.Unmarshal(out.Bytes(), &got); err != nil {
			t.Fatal(err)
		}
		if len(got.Servers) != 1 || got.Servers[0].Certificates != 40 || got.Servers[0].Errors != 0 || got.Servers[0].P50 <= 0 {
			t.Errorf("measured %+v", got.Servers)
		}
	}
}
