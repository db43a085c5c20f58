package journal_test

import (
	"context"
	"errors"
	"fmt"
	"syscall"
	"testing"

	"github.com/hallmark-ca/hallmark/ca/durable"
	"github.com/hallmark-ca/hallmark/ca/durable/faultfs"
	"github.com/hallmark-ca/hallmark/ca/journal"
)

const dir = "journal"

// bodies are the records of a life: founded, and then issuing CAs.
func bodies(t *testing.T, a *author) []journal.Body {
	t.Helper()
	out := []journal.Body{a.founding()}
	for range 4 {
		out = append(out, a.issuing(t, start))
	}
	return out
}

// load is [journal.Store.Load], where no journal is number 0.
func load(store journal.Store) (journal.State, error) {
	s, err := store.Load(context.Background())
	if errors.Is(err, journal.ErrNoJournal) {
		return journal.State{}, nil
	}
	return s, err
}

func TestFileStore(t *testing.T) {
	disk := faultfs.New()
	store, err := journal.OpenFile(disk, dir)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := journal.OpenFile(disk, dir); !errors.Is(err, durable.ErrLocked) {
		t.Errorf("opened twice: %v", err)
	}
	if _, err := store.Load(t.Context()); !errors.Is(err, journal.ErrNoJournal) {
		t.Errorf("load of nothing: %v", err)
	}
	a := newAuthor(t)
	for _, body := range bodies(t, a) {
		s, err := load(store)
		if err != nil {
			t.Fatal(err)
		}
		rec, err := journal.NewRecord(s, body, a.signer())
		if err != nil {
			t.Fatal(err)
		}
		if err := store.Append(t.Context(), rec); err != nil {
			t.Fatal(err)
		}
		if err := store.Append(t.Context(), rec); !errors.Is(err, journal.ErrConflict) {
			t.Errorf("the same record once more: %v", err)
		}
	}
	s, err := journal.ReadFile(disk, dir)
	if err != nil || s.Number != 5 {
		t.Errorf("read beside it: %d, %v", s.Number, err)
	}
	if err := store.Close(); err != nil {
		t.Fatal(err)
	}
	for name, content := range map[string]string{"empty": "", "garbage": "{", "a record of nothing": "{}\n", "half a record": `{"body":{"format":1`} {
		if err := durable.Replace(disk, dir+"/journal.jsonl", []byte(content)); err != nil {
			t.Fatal(err)
		}
		if _, err := journal.ReadFile(disk, dir); err == nil || errors.Is(err, journal.ErrNoJournal) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := durable.Replace(disk, dir+"/journal.jsonl", make([]byte, 5<<20)); err != nil {
		t.Fatal(err)
	}
	if _, err := journal.ReadFile(disk, dir); err == nil {
		t.Error("a journal of 5 MiB was read")
	}
}

// A record that would make the journal unreadable is refused, and nothing is
// stored.
func TestFileIsBounded(t *testing.T) {
	disk := faultfs.Memory()
	store, err := journal.OpenFile(disk, dir)
	if err != nil {
		t.Fatal(err)
	}
	a := newAuthor(t)
	for _, body := range bodies(t, a)[:2] {
		s, err := load(store)
		if err != nil {
			t.Fatal(err)
		}
		if body.Issuing != nil {
			body.By = string(make([]byte, 1<<20)) // six times as much in JSON
		}
		rec, err := journal.NewRecord(s, body, a.signer())
		if err != nil {
			t.Fatal(err)
		}
		err = store.Append(t.Context(), rec)
		if (err != nil) != (body.Issuing != nil) || errors.Is(err, journal.ErrStateUnknown) {
			t.Errorf("append: %v", err)
		}
	}
	if s, err := load(store); err != nil || s.Number != 1 {
		t.Errorf("state is at %d, %v", s.Number, err)
	}
}

var faults = map[string]faultfs.Fault{
	"not done": {Err: syscall.EIO},
	"done":     {Err: syscall.EIO, Done: true},
	"short":    {Err: syscall.ENOSPC, Short: 100},
}

// TestEveryFailedStep fails each operation of a journal's life, in each way.
// Whatever the caller was told holds, and whatever a Load has shown is durable:
// a power cut right after it changes nothing.
func TestEveryFailedStep(t *testing.T) {
	a := newAuthor(t)
	life := bodies(t, a)
	for kind, fault := range faults {
		for n := 0; ; n++ {
			when := fmt.Sprintf("operation %d failed (%s)", n, kind)
			disk := faultfs.New()
			hit := false
			disk.Inject = func(op faultfs.Op) *faultfs.Fault {
				if op.N != n {
					return nil
				}
				hit = true
				return &fault
			}
			store, err := journal.OpenFile(disk, dir)
			if err != nil {
				if store, err = journal.OpenFile(disk, dir); err != nil {
					t.Fatalf("%s: open once more: %v", when, err)
				}
			}
			for i, body := range life {
				appendTill(t, when, disk, store, a, body, uint64(i)+1)
			}
			if !hit {
				if n < 20 {
					t.Fatalf("a life has only %d operations", n)
				}
				break
			}
		}
	}
}

// appendTill appends body as record number, as often as it takes.
func appendTill(t *testing.T, when string, disk *faultfs.Disk, store journal.Store, a *author, body journal.Body, number uint64) {
	t.Helper()
	for range 4 {
		before, err := load(store)
		if errors.Is(err, journal.ErrStateUnknown) {
			continue // frozen until a read shows the truth
		}
		if err != nil {
			t.Fatalf("%s: load: %v", when, err)
		}
		if before.Number > 0 {
			if durable := afterCut(t, when, disk); durable != before.Number {
				t.Fatalf("%s: load shows record %d, and a cut leaves %d", when, before.Number, durable)
			}
		}
		if before.Number == number {
			return // an append of unknown outcome had been stored
		}
		rec, err := journal.NewRecord(before, body, a.signer())
		if err != nil {
			t.Fatalf("%s: record: %v", when, err)
		}
		err = store.Append(context.Background(), rec)
		left := afterCut(t, when, disk)
		switch {
		case err == nil && left != number:
			t.Fatalf("%s: record %d was reported durable, and a cut leaves %d", when, number, left)
		case err != nil && !errors.Is(err, journal.ErrStateUnknown):
			if now, err := journal.ReadFile(disk, dir); number > 1 && (err != nil || now.Number != before.Number) {
				t.Fatalf("%s: record %d failed and was not stored, and record %d is there (%v)", when, number, now.Number, err)
			}
		case left != number && left != before.Number:
			t.Fatalf("%s: of record %d nothing is known, and a cut leaves %d", when, number, left)
		}
	}
	if s, err := load(store); err != nil || s.Number != number {
		t.Fatalf("%s: record %d was never stored (%d, %v)", when, number, s.Number, err)
	}
}

// afterCut returns the last record that a power cut leaves at the worst.
func afterCut(t *testing.T, when string, disk *faultfs.Disk) uint64 {
	t.Helper()
	end := len(disk.Log())
	for cut := range disk.Cuts() {
		if cut.After != end {
			continue
		}
		s, err := journal.ReadFile(cut.Image(faultfs.Lost), dir)
		if err != nil && !errors.Is(err, journal.ErrNoJournal) {
			t.Fatalf("%s: after a cut: %v", when, err)
		}
		return s.Number
	}
	return 0
}

// TestEveryCut cuts the power after each operation, with any part of what was
// not synced lost.
func TestEveryCut(t *testing.T) {
	disk := faultfs.New()
	store, err := journal.OpenFile(disk, dir)
	if err != nil {
		t.Fatal(err)
	}
	a := newAuthor(t)
	told := []int{0} // operations after which record i had been reported durable
	for _, body := range bodies(t, a) {
		s, err := load(store)
		if err != nil {
			t.Fatal(err)
		}
		rec, err := journal.NewRecord(s, body, a.signer())
		if err != nil {
			t.Fatal(err)
		}
		if err := store.Append(t.Context(), rec); err != nil {
			t.Fatal(err)
		}
		told = append(told, disk.Ops())
	}
	images := 0
	for cut := range disk.Cuts() {
		least := 0
		for i, ops := range told {
			if cut.After > 0 && cut.Last.N+1 >= ops {
				least = i
			}
		}
		for name, image := range cut.Images(40) {
			images++
			when := fmt.Sprintf("cut after %v, %s", cut.Last, name)
			s, err := journal.ReadFile(image, dir)
			if err != nil && !errors.Is(err, journal.ErrNoJournal) {
				t.Fatalf("%s: %v", when, err)
			}
			if int(s.Number) < least || int(s.Number) > least+1 {
				t.Fatalf("%s: record %d is the last, and %d had been reported durable", when, s.Number, least)
			}
		}
	}
	if images < 100 {
		t.Errorf("only %d images were seen", images)
	}
}

// A process that died between a rename and its sync leaves a journal that is
// visible, and not durable. What the next one bases on it must not vanish.
func TestNextProcessSettles(t *testing.T) {
	disk := faultfs.New()
	store, err := journal.OpenFile(disk, dir)
	if err != nil {
		t.Fatal(err)
	}
	a := newAuthor(t)
	rec, err := journal.NewRecord(journal.State{}, a.founding(), a.signer())
	if err != nil {
		t.Fatal(err)
	}
	disk.Inject = func(op faultfs.Op) *faultfs.Fault {
		if op.Kind == faultfs.SyncDir {
			return &faultfs.Fault{Err: syscall.EIO}
		}
		return nil
	}
	if err := store.Append(t.Context(), rec); !errors.Is(err, journal.ErrStateUnknown) {
		t.Fatalf("append = %v", err)
	}
	if _, err := store.Load(t.Context()); !errors.Is(err, journal.ErrStateUnknown) {
		t.Errorf("a load while nothing can be synced: %v", err)
	}
	next := disk.Reopen()
	if n := afterCut(t, "before", next); n != 0 {
		t.Fatalf("the record is durable already: %d", n)
	}
	if store, err = journal.OpenFile(next, dir); err != nil {
		t.Fatal(err)
	}
	if s, err := store.Load(t.Context()); err != nil || s.Number != 1 {
		t.Fatalf("load = %d, %v", s.Number, err)
	}
	if n := afterCut(t, "after", next); n != 1 {
		t.Errorf("what load showed is gone after a cut: %d", n)
	}
}
