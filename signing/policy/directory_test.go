package policy_test

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/hallmark-ca/hallmark/signing/policy"
)

const soon = 5 * time.Millisecond

// following opens the folder and follows it. Each change of the set is told.
func following(t *testing.T, dir string) (*policy.Directory, *prometheus.Registry, <-chan struct{}) {
	t.Helper()
	metrics := prometheus.NewRegistry()
	d, err := policy.OpenDirectory(policy.DirectoryConfig{Dir: dir, Every: soon, Registerer: metrics, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	changed := make(chan struct{}, 100)
	d.Subscribe(func() { changed <- struct{}{} })
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- d.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return d, metrics, changed
}

func await(t *testing.T, changed <-chan struct{}) {
	t.Helper()
	select {
	case <-changed:
	case <-time.After(10 * time.Second):
		t.Fatal("no change was seen")
	}
}

// until waits for what the following goroutine does without telling.
func until(t *testing.T, what string, holds func() bool) {
	t.Helper()
	tick := time.NewTicker(soon)
	defer tick.Stop()
	end := time.After(10 * time.Second)
	for !holds() {
		select {
		case <-tick.C:
		case <-end:
			t.Fatalf("%s did not come to pass", what)
		}
	}
}

// write puts a file in place at once: readings as close together as these could
// find it half written twice.
func write(t *testing.T, dir, name, text string) {
	t.Helper()
	temp := filepath.Join(dir, "."+name)
	if err := os.WriteFile(temp, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(temp, filepath.Join(dir, name)); err != nil {
		t.Fatal(err)
	}
}

func policyNames(d *policy.Directory) string {
	var all []string
	for _, p := range d.Set().Policies() {
		name := p.Name()
		if p.Unusable() != "" {
			name += "!"
		}
		all = append(all, name)
	}
	return strings.Join(all, " ")
}

// gauge returns a metric's value, by its only label's where it has one.
func gauge(t *testing.T, metrics *prometheus.Registry, name, label string) float64 {
	t.Helper()
	families, err := metrics.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			if f.GetName() == name && (label == "" || m.GetLabel()[0].GetValue() == label) {
				return m.GetGauge().GetValue()
			}
		}
	}
	t.Fatalf("no metric %s %s", name, label)
	return 0
}

func TestDirectoryFollows(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	write(t, dir, "a.yaml", document("a", "a/**"))
	write(t, dir, "notes.txt", "{")
	write(t, dir, ".hidden.yaml", "{")
	d, metrics, changed := following(t, dir)
	if got := policyNames(d); got != "a" {
		t.Fatalf("policies %q", got)
	}
	write(t, dir, "b.yml", document("b", "b/**"))
	await(t, changed)
	if got := policyNames(d); got != "a b" {
		t.Errorf("after a new file: %q", got)
	}
	write(t, dir, "b.yml", document("b", "c/**"))
	await(t, changed)
	if speaks, _ := names(t, d.Set(), "c/x"); !speaks {
		t.Error("an edit is not in force")
	}
	write(t, dir, "b.yml", "{")
	await(t, changed)
	if got := policyNames(d); got != "a b.yml!" {
		t.Errorf("after a file was broken: %q", got)
	}
	if err := os.Remove(filepath.Join(dir, "b.yml")); err != nil {
		t.Fatal(err)
	}
	await(t, changed)
	if got := policyNames(d); got != "a" {
		t.Errorf("after a file was removed: %q", got)
	}
	if usable, unusable := gauge(t, metrics, "hallmark_image_policies", "usable"), gauge(t, metrics, "hallmark_image_policies", "unusable"); usable != 1 || unusable != 0 {
		t.Errorf("metrics: %v usable, %v unusable", usable, unusable)
	}
}

// A mounted ConfigMap changes by the swap of one link.
func TestDirectorySwap(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	stage := func(version, text string) {
		t.Helper()
		if err := os.Mkdir(filepath.Join(dir, version), 0o700); err != nil {
			t.Fatal(err)
		}
		write(t, filepath.Join(dir, version), "p.yaml", text)
		if err := os.Symlink(version, filepath.Join(dir, "..tmp")); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(filepath.Join(dir, "..tmp"), filepath.Join(dir, "..data")); err != nil {
			t.Fatal(err)
		}
	}
	stage("..1", document("one", "**"))
	if err := os.Symlink("..data/p.yaml", filepath.Join(dir, "p.yaml")); err != nil {
		t.Fatal(err)
	}
	d, _, changed := following(t, dir)
	stage("..2", document("two", "**"))
	await(t, changed)
	if got := policyNames(d); got != "two" {
		t.Errorf("policies %q", got)
	}
}

// A folder, or a file in it, that can no longer be read takes nothing out of
// force, and comes back.
func TestDirectoryVanishes(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	dir, away := filepath.Join(root, "policies"), filepath.Join(root, "away")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	write(t, dir, "a.yaml", document("a", "**"))
	d, metrics, changed := following(t, dir)
	readable := func() bool {
		return gauge(t, metrics, "hallmark_image_policies_readable", "") == 1 && len(d.Problems()) == 0
	}
	if err := os.Rename(dir, away); err != nil {
		t.Fatal(err)
	}
	until(t, "the loss", func() bool {
		return gauge(t, metrics, "hallmark_image_policies_readable", "") == 0 && len(d.Problems()) > 0
	})
	if got := policyNames(d); got != "a" {
		t.Errorf("policies while the folder is away: %q", got)
	}
	if p := d.Problems()[0]; p.Warning || p.File != dir || !strings.Contains(p.Mend, "last policies") {
		t.Errorf("problem: %+v", p)
	}
	if err := os.Rename(away, dir); err != nil {
		t.Fatal(err)
	}
	until(t, "the return", readable)

	for name, spoil := range map[string]func(path string) error{
		"a pipe":            func(path string) error { return syscall.Mkfifo(path, 0o600) },
		"a folder":          func(path string) error { return os.Mkdir(path, 0o700) },
		"a link to nothing": func(path string) error { return os.Symlink("nothing", path) },
	} {
		path := filepath.Join(dir, "b.yaml")
		if err := spoil(path); err != nil {
			t.Fatal(err)
		}
		until(t, name, func() bool { return !readable() })
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
		until(t, "the end of "+name, readable)
	}
	select {
	case <-changed:
		t.Error("a change was announced where there was none")
	default:
	}
	write(t, dir, "a.yaml", document("z", "**"))
	await(t, changed)
	if got := policyNames(d); got != "z" {
		t.Errorf("policies %q", got)
	}
}

// What could never be read denies everything, until it can.
func TestDirectoryMissing(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "later")
	d, _, changed := following(t, dir)
	if speaks, usable := names(t, d.Set(), "any/image"); !speaks || usable || len(d.Problems()) == 0 {
		t.Errorf("not denied: %v", d.Problems())
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	write(t, dir, "a.yaml", document("a", "**"))
	for policyNames(d) != "a" { // the folder may be seen before its file
		await(t, changed)
	}
	if problems := d.Problems(); len(problems) != 0 {
		t.Error(problems)
	}
}

func TestOpenDirectoryRefuses(t *testing.T) {
	t.Parallel()
	if _, err := policy.OpenDirectory(policy.DirectoryConfig{}); err == nil {
		t.Error("opened nothing")
	}
	cfg := policy.DirectoryConfig{Dir: t.TempDir(), Registerer: prometheus.NewRegistry(), Log: slog.New(slog.DiscardHandler)}
	if _, err := policy.OpenDirectory(cfg); err != nil {
		t.Fatal(err)
	}
	if _, err := policy.OpenDirectory(cfg); err == nil {
		t.Error("the metrics were registered twice")
	}
}
