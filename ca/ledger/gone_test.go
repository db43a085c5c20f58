package ledger_test

import (
	"bytes"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hallmark-ca/hallmark/ca/durable"
	"github.com/hallmark-ca/hallmark/ca/ledger"
)

// TestFilesTakenAwayAreNoticed: a removed file takes every write, and nobody
// ever reads one of them.
func TestFilesTakenAwayAreNoticed(t *testing.T) {
	t.Parallel()
	for what, take := range map[string]func(folder string) error{
		"folder":   os.RemoveAll,
		"segment":  func(folder string) error { return os.Remove(filepath.Join(folder, "00000001.seg")) },
		"replaced": replaceByCopy,
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			root := t.TempDir()
			synctest.Test(t, func(t *testing.T) {
				var log bytes.Buffer
				cfg := config(durable.OS(root))
				cfg.Log = slog.New(slog.NewTextHandler(&log, nil))
				l, stop := start(t, cfg)
				if err := l.Append(t.Context(), wideIntent(1)); err != nil {
					t.Fatal(err)
				}
				if err := take(filepath.Join(root, dir)); err != nil {
					t.Fatal(err)
				}
				<-time.After(3 * time.Second)
				synctest.Wait()
				if err := l.Ready(); !errors.Is(err, ledger.ErrUnwritable) || !strings.Contains(err.Error(), "ledger/00000001.seg was removed or replaced") {
					t.Errorf("ready: %v", err)
				}
				if err := l.Append(t.Context(), wideIntent(2)); !errors.Is(err, ledger.ErrUnwritable) {
					t.Errorf("append: %v", err)
				}
				if err := stop(); err != nil {
					t.Error(err)
				}
				if text := log.String(); strings.Count(text, "taken away under the running server") != 1 || !strings.Contains(text, "put back the newest copy") {
					t.Errorf("the log does not say once what to do:\n%s", text)
				}
			})
		})
	}
}

func replaceByCopy(folder string) error {
	name := filepath.Join(folder, "00000001.seg")
	data, err := os.ReadFile(name)
	if err != nil {
		return err
	}
	return errors.Join(os.Remove(name), os.WriteFile(name, data, 0o600))
}

// TestNothingIsAcknowledgedIntoARemovedFile: also before anybody looked.
func TestNothingIsAcknowledgedIntoARemovedFile(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		l, stop := start(t, config(durable.OS(root)))
		if err := l.Append(t.Context(), wideIntent(1)); err != nil {
			t.Fatal(err)
		}
		here, away := filepath.Join(root, dir), filepath.Join(root, "away")
		if err := os.Rename(here, away); err != nil {
			t.Fatal(err)
		}
		if err := l.Append(t.Context(), wideIntent(2)); !errors.Is(err, ledger.ErrUnwritable) {
			t.Errorf("append into a file without a name: %v", err)
		}
		if err := os.Rename(away, here); err != nil {
			t.Fatal(err)
		}
		<-time.After(3 * time.Second)
		if err := l.Append(t.Context(), wideIntent(3)); err != nil {
			t.Errorf("not usable again: %v", err)
		}
		if err := stop(); err != nil {
			t.Error(err)
		}
		report, err := ledger.Verify(t.Context(), durable.OS(root), dir, nil)
		if err != nil || len(report.Findings) > 0 || report.Intents != 2 {
			t.Errorf("%+v, %v", report, err)
		}
	})
}
