package cli_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/hallmark-ca/hallmark/ca/journal"
	"github.com/hallmark-ca/hallmark/ca/rotate"
	"github.com/hallmark-ca/hallmark/cmd/internal/admin"
	"github.com/hallmark-ca/hallmark/cmd/internal/admin/admintest"
	"github.com/hallmark-ca/hallmark/cmd/internal/cli"
)

var update = flag.Bool("update", false, "write the golden files anew")

var now = admintest.Now

const (
	oldRoot = "3f0c91d2aa11bb22cc33dd44ee55ff6600778899"
	newRoot = "ab12cd34aa11bb22cc33dd44ee55ff6600778899"
	another = "9b1c44aaaa11bb22cc33dd44ee55ff6600778899"
)

// hallmark runs the command line, and returns its exit code.
func hallmark(args ...string) (code int, stdout, stderr string) {
	var out, errs bytes.Buffer
	code = cli.Main(args, &out, &errs)
	return code, out.String(), errs.String()
}

func golden(t *testing.T, name, got string) {
	t.Helper()
	file := filepath.Join("testdata", "golden", name+".txt")
	if *update {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s (-want +got), -update writes it anew:\n%s", file, diff)
	}
}

func root(id string, phase journal.Phase, age time.Duration, used float64) rotate.RootStatus {
	return rotate.RootStatus{ID: id, Phase: phase, Since: now.Add(-age), NotBefore: now.Add(-1000 * time.Hour), NotAfter: now.Add(50_000 * time.Hour), LifeUsed: used}
}

func consumers(n int) []rotate.Consumer {
	var list []rotate.Consumer
	for i := range n {
		list = append(list, rotate.Consumer{
			Door: "sds", Identity: "spiffe://example.org/ns/shop/sa/client", Namespace: "shop", Pod: fmt.Sprintf("client-%02d", i), UID: fmt.Sprintf("uid-%d", i),
			Node: "node-7", Confirmed: 6, Seen: now.Add(-time.Duration(i+1) * time.Minute), Until: now.Add(time.Duration(i+1) * time.Hour),
		})
	}
	return list
}

func base(phase string, roots ...rotate.RootStatus) rotate.Status {
	return rotate.Status{
		At: now, TrustDomain: "example.org", Record: 12, Sequence: 7, Phase: phase, Course: journal.Manual, Automatic: rotate.Propose, Roots: roots,
	}
}

func idle() rotate.Status {
	s := base(rotate.Idle, root(oldRoot, journal.Active, 2000*time.Hour, 0.12))
	s.Roots[0].Leaves, s.Roots[0].LeavesUntil = 4210, now.Add(6*time.Hour)
	s.Wait = rotate.Wait{For: rotate.ForNothing, Next: rotate.Prepare, Until: now.Add(9000 * time.Hour), Reason: "no rotation is under way; the next is due at half of the root's life"}
	return s
}

func gateA() rotate.Status {
	s := base(rotate.Published, root(oldRoot, journal.Active, 2000*time.Hour, 0.52), root(newRoot, journal.Published, 10*time.Minute, 0), root(another, journal.Trusted, 99*time.Hour, 0.3))
	s.Roots[0].Leaves, s.Roots[0].LeavesUntil, s.Roots[0].Alert = 4210, now.Add(6*time.Hour), 50
	list := append(consumers(10)[:8], rotate.Consumer{Door: "file /run/bundle.pem", Until: now.Add(time.Minute)}, rotate.Consumer{Door: "ConfigMap istio-ca-root-cert", Why: "namespace shop refuses our write"})
	s.Gates = []rotate.Gate{
		{
			Name: "A", Root: newRoot, Consumers: 4210, Confirmed: 4197, BehindCount: 13, Behind: append(list, consumers(11)[8:]...), Earliest: now.Add(5 * time.Minute), Latest: now.Add(12 * time.Hour),
			Why: "gate A is shut: 13 of 4210 consumers have not confirmed root ab12cd34", Mend: "wait, or --force --reason",
			AsideCount: 1, Aside: []rotate.Consumer{{Door: "istio-ca", Namespace: "shop", Pod: "stuck"}},
		},
		{Name: "trust", Root: another, Open: true, Consumers: 4210, Confirmed: 4210},
	}
	s.Wait = rotate.Wait{For: rotate.ForGateA, Next: rotate.Activate, Root: newRoot, Reason: s.Gates[0].Why, Mend: s.Gates[0].Mend, Until: now.Add(5 * time.Minute)}
	return s
}

func gateB() rotate.Status {
	s := base(rotate.Draining, root(another, journal.Retired, 99*time.Hour, 0.9), root(oldRoot, journal.Draining, 8*time.Hour, 0.52), root(newRoot, journal.Active, 8*time.Hour, 0))
	s.Roots[0].KeyUntil = now.Add(600 * time.Hour)
	s.Course = journal.Run
	s.Gates = []rotate.Gate{{
		Name: "B", Root: oldRoot, Consumers: 4210, Confirmed: 4208, BehindCount: 2, Behind: consumers(2), Earliest: now.Add(10 * time.Minute),
		Why: "gate B is shut: the rehearsal at 2026-07-01T11:55:00Z failed (2 consumers did not come back within 2m0s)", Mend: "restart those that are behind",
	}}
	s.Wait = rotate.Wait{For: rotate.ForRehearsal, Next: rotate.Retire, Root: oldRoot, Reason: s.Gates[0].Why, Until: now.Add(10 * time.Minute)}
	return s
}

func leavesLeft() rotate.Status {
	s := gateB()
	s.Gates[0] = rotate.Gate{
		Name: "B", Root: oldRoot, Consumers: 4210, Leaves: 3100, LeavesUntil: now.Add(3 * time.Hour), Earliest: now.Add(3 * time.Hour),
		Why: "gate B is shut: 3100 leaves under root 3f0c91d2 are unexpired, the last until 2026-07-01T15:00:00Z", Mend: "wait, or --force --reason",
	}
	s.Wait = rotate.Wait{For: rotate.ForGateB, Next: rotate.Retire, Root: oldRoot, Until: now.Add(3 * time.Hour)}
	return s
}

func openA() rotate.Status {
	s := gateA()
	s.Roots, s.Gates = s.Roots[:2], []rotate.Gate{{Name: "A", Root: newRoot, Open: true, Consumers: 4210, Confirmed: 4210}}
	s.Wait = rotate.Wait{For: rotate.ForPerson, Next: rotate.Activate, Root: newRoot, Reason: "gate A is open", Mend: "hallmark rotate activate"}
	return s
}

func wrong() rotate.Status {
	s := idle()
	s.Roots[0].LifeUsed, s.Roots[0].Alert = 0.91, 90
	s.Frozen = &rotate.Failure{At: now.Add(-time.Minute), Step: rotate.Publish, Record: 13, Error: "sync: input/output error\x1b[2J"}
	s.Failure = &rotate.Failure{At: now, Error: "loading journal: input/output error"}
	s.Wait = rotate.Wait{For: rotate.ForClock, Reason: "the clock is 3m0s behind the journal (ClockSkew)", Mend: "set this machine's clock"}
	return s
}

func TestRotateStatus(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		status rotate.Status
		broken error
		code   int
	}{
		"idle":        {idle(), nil, 0},
		"gate-a":      {gateA(), nil, 0},
		"gate-a-open": {openA(), nil, 0},
		"leaves-left": {leavesLeft(), nil, 0},
		"rehearsal":   {gateB(), nil, 0},
		"wrong":       {wrong(), nil, 1},
		"unreadable":  {rotate.Status{At: now}, errors.New("reading rotation status: loading journal: input/output error"), 1},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			r := &admintest.Rotation{}
			r.Set(c.status, c.broken, nil)
			admintest.Serve(t, dir, r, admin.Facts{})
			code, out, errs := hallmark("rotate", "status", "--state", dir)
			if code != c.code || errs != "" {
				t.Errorf("exit code %d, %s, want %d", code, errs, c.code)
			}
			golden(t, "rotate-status-"+name, out)
			// Without a terminal, a live view is shown once.
			if _, live, _ := hallmark("rotate", "status", "--watch", "--state", dir); live != out {
				t.Errorf("--watch without a terminal:\n%s", live)
			}
			code, text, _ := hallmark("rotate", "status", "-o", "json", "--state", dir)
			var answer admin.RotationStatus
			if err := json.Unmarshal([]byte(text), &answer); err != nil || code != c.code {
				t.Errorf("-o json: exit code %d, %v:\n%s", code, err, text)
			}
			if len(answer.Gates) > 0 && len(answer.Gates[0].Behind) != len(c.status.Gates[0].Behind) {
				t.Errorf("-o json has %d names", len(answer.Gates[0].Behind))
			}
		})
	}
}

func TestStatus(t *testing.T) {
	t.Parallel()
	age, usage := 1.5, 0.127
	facts := admin.Facts{
		Version: "v0.2.0", TrustDomain: "example.org", Cluster: "c1", Replica: "hallmark-0", Started: now.Add(-76 * time.Hour), ImageGate: "enforce",
		Issuing: oldRoot, IssuingUntil: now.Add(60 * time.Hour), ServingUntil: now.Add(20 * time.Hour), ViewAge: &age, OutageTolerance: 3 * 3600, LedgerUsage: &usage,
	}
	bad := facts
	bad.More = []admin.Line{{Name: "bundle", Text: "2 of 3 places hold sequence 7", Bad: true}}
	full := admin.Condition{Name: "ledger", Text: "it is full to 96 %"}
	for name, c := range map[string]struct {
		facts      admin.Facts
		conditions []admin.Condition
		code       int
	}{
		"ready":     {facts, []admin.Condition{{Name: "ledger", Ready: true}}, 0},
		"not-ready": {facts, []admin.Condition{{Name: "issuing CA", Ready: true}, full}, 1},
		"bad-line":  {bad, nil, 1},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			r := &admintest.Rotation{}
			r.Set(gateA(), nil, nil)
			admintest.Serve(t, dir, r, c.facts, c.conditions...)
			code, out, errs := hallmark("status", "--state", dir)
			if code != c.code || errs != "" {
				t.Errorf("exit code %d, %s, want %d", code, errs, c.code)
			}
			golden(t, "status-"+name, out)
			if rows := strings.Count(out, "\n"); rows > 30 {
				t.Errorf("one screen has %d lines", rows)
			}
		})
	}
}

// TestRotate: what is typed reaches the rotation, and what it refuses the person.
func TestRotate(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	r := &admintest.Rotation{}
	r.Set(gateA(), nil, nil)
	admintest.Serve(t, dir, r, admin.Facts{})
	run := func(args ...string) (int, string, string) {
		return hallmark(append(append([]string{"rotate"}, args...), "--state", dir)...)
	}
	for _, c := range []struct{ args, want string }{
		{"start", `start by `},
		{"activate", `activate by `},
		{"activate --force --yes --reason because", `true "because"`},
		{"retire", `retire "" by `},
		{"retire --root 3f0C:91", `retire "` + oldRoot + `" by `},
		{"retire --root 0000", `retire "0000" by `}, // the server says that it is not known
		{"untrust --root 9b1c44aa --force --yes --reason moved", `untrust "` + another + `" by `},
		{"abort", `abort by `},
		{"pause", `pause by `},
		{"resume", `resume by `},
		{"run", `run by `},
	} {
		code, out, errs := run(strings.Fields(c.args)...)
		if code != 0 || !strings.HasPrefix(out, "done          ") || !strings.Contains(out, "gate A") {
			t.Errorf("%s: exit code %d\n%s%s", c.args, code, out, errs)
		}
		calls := r.Calls()
		if last := calls[len(calls)-1]; !strings.Contains(last, c.want) {
			t.Errorf("%s: %s, want %s", c.args, last, c.want)
		}
	}
	_, _, errs := run("activate", "--force", "--yes", "--reason", "because")
	for _, want := range []string{"Root ab12cd34 signs at once", "shut: 4197 of 4210", "shop/client-00", "… and 3 more"} {
		if !strings.Contains(errs, want) {
			t.Errorf("what --force passes lacks %q:\n%s", want, errs)
		}
	}
	if code, out, _ := run("pause", "-o", "json"); code != 0 || !json.Valid([]byte(out)) {
		t.Errorf("-o json: exit code %d\n%s", code, out)
	}

	r.Set(gateA(), nil, &rotate.RefusedError{Why: "gate A is shut: 13 are behind", Mend: "wait, or --force --reason"})
	if code, out, errs := run("activate"); code != 1 || out != "" || errs != "hallmark: gate A is shut: 13 are behind: wait, or --force --reason\n" {
		t.Errorf("a refusal: exit code %d\n%s%s", code, out, errs)
	}
}

// TestForceIsMeant: without --yes, a person at a terminal is asked, and yes alone
// is a yes.
func TestForceIsMeant(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	r := &admintest.Rotation{}
	r.Set(gateA(), nil, nil)
	admintest.Serve(t, dir, r, admin.Facts{})
	for answer, forced := range map[string]bool{"yes\n": true, "y\n": false, "\n": false, "no\n": false, "\x04": false} {
		before := len(r.Calls())
		master, slave := pty(t)
		if _, err := master.WriteString(answer); err != nil {
			t.Fatal(err)
		}
		root := cli.Root()
		var errs bytes.Buffer
		root.SetIn(slave)
		root.SetOut(io.Discard)
		root.SetErr(&errs)
		root.SetArgs([]string{"rotate", "activate", "--force", "--reason", "because", "--state", dir})
		err := root.ExecuteContext(t.Context())
		if (err == nil) != forced || (len(r.Calls()) > before) != forced || !strings.Contains(errs.String(), "Type yes to go on: ") {
			t.Errorf("answer %q: %v, %d steps\n%s", answer, err, len(r.Calls())-before, errs.String())
		}
	}
}

// TestWatch: a live view stays in its place on a terminal, fits it, and ends with
// its context, which Ctrl-C ends.
func TestWatch(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	r := &admintest.Rotation{}
	r.Set(gateA(), nil, nil)
	s := admintest.Serve(t, dir, r, admin.Facts{})
	master, slave := pty(t)
	if err := unix.IoctlSetWinsize(int(slave.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: 12, Col: 40}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	root := cli.Root()
	root.SetOut(slave)
	root.SetErr(io.Discard)
	root.SetArgs([]string{"rotate", "status", "--watch", "--state", dir})
	ended := make(chan error, 1)
	go func() { ended <- root.ExecuteContext(ctx) }()

	screen := readUntil(t, master, "Ctrl-C ends")
	lines := strings.Split(screen, "\r\n")
	if !strings.HasPrefix(screen, "\x1b[H") || len(lines) != 12 || !strings.Contains(screen, "lines more than fit") {
		t.Errorf("the screen has %d lines:\n%q", len(lines), screen)
	}
	for _, line := range lines {
		line = strings.TrimPrefix(strings.ReplaceAll(line, "\x1b[K", ""), "\x1b[H")
		if len([]rune(line)) > 40 {
			t.Errorf("a line has %d characters: %q", len([]rune(line)), line)
		}
	}
	// The server goes away: that is shown, and tried again.
	if err := s.Stop(t); err != nil {
		t.Error(err)
	}
	readUntil(t, master, "no server runs on this state")
	cancel()
	if err := <-ended; err != nil {
		t.Errorf("the end of a live view: %v", err)
	}
}

func readUntil(t *testing.T, r io.Reader, want string) string {
	t.Helper()
	got := make(chan string, 1)
	go func() {
		var all []byte
		buf := make([]byte, 4096)
		for !strings.Contains(string(all), want) {
			n, err := r.Read(buf)
			if err != nil {
				break
			}
			all = append(all, buf[:n]...)
		}
		got <- string(all)
	}()
	select {
	case text := <-got:
		return text
	case <-time.After(20 * time.Second):
		t.Fatalf("the terminal does not show %q", want)
		return ""
	}
}

// pty opens a pair of ends of a pseudo-terminal.
func pty(t *testing.T) (master, slave *os.File) {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if errors.Is(err, os.ErrNotExist) && os.Getenv("CI") != "true" {
		t.Skip("this system has no pseudo-terminals")
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { master.Close() })
	if err := unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetUint32(int(master.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	if slave, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { slave.Close() })
	return master, slave
}

// TestRootByPrefix: what names two roots names none.
func TestRootByPrefix(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := gateA()
	twin := s.Roots[0]
	twin.ID = "3f0c91d2" + strings.Repeat("0", 32)
	s.Roots = append(s.Roots, twin)
	r := &admintest.Rotation{}
	r.Set(s, nil, nil)
	admintest.Serve(t, dir, r, admin.Facts{})
	if code, _, errs := hallmark("rotate", "retire", "--root", "3f0c91d2", "--state", dir); code != 2 || !strings.Contains(errs, "more than one") {
		t.Errorf("exit code %d: %s", code, errs)
	}
	if code, _, errs := hallmark("rotate", "retire", "--root", twin.ID, "--state", dir); code != 0 {
		t.Errorf("exit code %d: %s", code, errs)
	}
	if calls := r.Calls(); len(calls) != 1 || !slices.ContainsFunc(calls, func(c string) bool { return strings.Contains(c, twin.ID) }) {
		t.Errorf("calls = %q", calls)
	}
}
