package rotate_test

import (
	"context"
	"errors"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/hallmark-ca/hallmark/ca/census"
	"github.com/hallmark-ca/hallmark/ca/durable/faultfs"
	"github.com/hallmark-ca/hallmark/ca/journal"
	"github.com/hallmark-ca/hallmark/ca/rotate"
)

var _ rotate.Census = (*census.Census)(nil)

// inForce is what was made true, and when.
type inForce struct {
	ops    int // operations of the disk that had begun
	number uint64
	head   string
}

// onDisk follows the journal in a file, and notes what it made true.
type onDisk struct {
	disk  *faultfs.Disk
	store journal.Store
	made  []inForce
}

func (o *onDisk) Follow(ctx context.Context) error {
	state, err := o.store.Load(ctx)
	if err == nil {
		o.made = append(o.made, inForce{o.disk.Ops(), state.Number, state.Head})
	}
	return err
}

// liveOnDisk lives a whole life by a journal on disk, each command given until
// it is done.
func liveOnDisk(t *testing.T, disk *faultfs.Disk) *onDisk {
	t.Helper()
	w := newWorld(t)
	store, err := journal.OpenFile(disk, "journal")
	must(t, err)
	must(t, store.Append(t.Context(), w.records[0]))
	o := &onDisk{disk: disk, store: store}
	cfg := w.config(prometheus.NewRegistry())
	cfg.Store, cfg.Follower = store, o
	r, err := rotate.New(cfg)
	must(t, err)
	for _, step := range []struct {
		command func(context.Context, *world, *rotate.Runner) error
		done    journal.Phase
	}{{start, journal.Published}, {activate, journal.Draining}, {retire, journal.Retired}} {
		for tries := 0; ; tries++ {
			err := step.command(t.Context(), w, r)
			state, lost := store.Load(t.Context())
			if lost == nil && len(state.In(step.done)) > 0 {
				break
			}
			if tries == 5 {
				t.Fatalf("no root is %s: %v, %v", step.done, err, lost)
			}
		}
	}
	<-time.After(keyHold)
	looks(t, r, 3)
	state, err := store.Load(t.Context())
	must(t, err)
	if state.Roots[0].Destroyed == nil {
		t.Errorf("the life was not lived: %s, and its key is there", state.Roots[0].Phase)
	}
	return o
}

// afterEachCut holds what is found after a power cut at any moment against what
// was in force then.
func (o *onDisk) afterEachCut(t *testing.T) {
	t.Helper()
	if len(o.made) < 5 {
		t.Errorf("only %d states were in force", len(o.made))
	}
	for cut := range o.disk.Cuts() {
		for how, image := range cut.Images(8) {
			state, err := journal.ReadFile(image, "journal")
			if err != nil && !errors.Is(err, journal.ErrNoJournal) {
				t.Errorf("after %d (%s), %s: %v", cut.After, cut.Last, how, err)
			}
			for _, f := range o.made {
				if f.ops <= cut.After && !state.Extends(f.number, f.head) {
					t.Errorf("after %d (%s), %s: record %d was in force, the journal has %d", cut.After, cut.Last, how, f.number, state.Number)
				}
			}
		}
	}
}

// Nothing of a step is used that a power cut could still take back.
func TestPowerCuts(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) { liveOnDisk(t, faultfs.New()).afterEachCut(t) })
}

// Nor where the disk fails at any one operation, done or not done all the same.
func TestDiskFailures(t *testing.T) {
	t.Parallel()
	founding, ops := 0, 0
	synctest.Test(t, func(t *testing.T) {
		disk := faultfs.New()
		o := liveOnDisk(t, disk)
		founding, ops = o.made[0].ops, disk.Ops()
	})
	if ops-founding < 20 {
		t.Fatalf("only %d operations", ops-founding)
	}
	for at := founding; at < ops; at++ {
		for _, fault := range []faultfs.Fault{{Err: syscall.EIO}, {Err: syscall.EIO, Done: true}, {Err: syscall.ENOSPC, Short: 100}} {
			synctest.Test(t, func(t *testing.T) {
				disk := faultfs.New()
				disk.Inject = func(op faultfs.Op) *faultfs.Fault {
					if op.N == at {
						return &fault
					}
					return nil
				}
				o := liveOnDisk(t, disk)
				if fault.Done { // its images are the most, and the others show no more
					o.afterEachCut(t)
				}
				if t.Failed() {
					t.Logf("operation %d, %+v", at, fault)
				}
			})
		}
	}
}
