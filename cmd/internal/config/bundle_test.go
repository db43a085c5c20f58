package config_test

import (
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/hallmark-ca/hallmark/cmd/internal/config"
)

// TestBundleIsWrittenOverNothing: the file is replaced without a look at what it
// was, so it must not be one that something else rests on.
func TestBundleIsWrittenOverNothing(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for _, folder := range []string{"state", "state/keys", "state/journal"} {
		if err := os.Mkdir(filepath.Join(dir, folder), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "pass"), []byte("word"), 0o600); err != nil {
		t.Fatal(err)
	}
	for link, to := range map[string]string{"state/door": "keys", "state/other.pem": "../pass"} {
		if err := os.Symlink(to, filepath.Join(dir, link)); err != nil {
			t.Fatal(err)
		}
	}
	for _, bad := range []string{
		"keys/passphrase", "keys/root-1.pem", "keys", "journal/bundle.pem", "ledger/00000001.seg", "ledger/new/bundle.pem", "evidence/a",
		"hallmark.yaml", "journal.seen", filepath.Join(dir, "pass"), "./keys/../keys/passphrase", "../pass", ".",
		"door/bundle.pem", "other.pem", filepath.Join(dir, "kube"), filepath.Join(dir, "docker"), filepath.Join(dir, "ca"), filepath.Join(dir, "pin"), filepath.Join(dir, "policies/a.pem"),
	} {
		if got := paths(t, checkBundle(dir, bad)); !slices.Equal(got, []string{"bundle.file"}) {
			t.Errorf("%s: %v, want it refused", bad, got)
		}
	}
	for _, good := range []string{"bundle.pem", "keys.pem", "public/bundle.pem", "..pem", filepath.Join(dir, "bundle.pem"), "/srv/hallmark/bundle.pem"} {
		if err := checkBundle(dir, good); err != nil {
			t.Errorf("%s: %v", good, err)
		}
	}
}

func checkBundle(dir, bundle string) error {
	file := config.Defaults()
	file.State = filepath.Join(dir, "state")
	file.Bundle.File = bundle
	file.Authority.PassphraseFile = filepath.Join(dir, "pass")
	file.Authority.KeyURI = "pkcs11:token=a?module-path=/lib/a.so&pin-source=" + filepath.Join(dir, "pin")
	file.Attest.Kubeconfig = filepath.Join(dir, "kube")
	file.Images.Registries.DockerConfig = filepath.Join(dir, "docker")
	file.Images.Registries.CAFiles = []string{filepath.Join(dir, "ca")}
	file.Images.Policies = filepath.Join(dir, "policies")
	_, err := config.Check(file)
	return err
}

func TestBundleIsNotTheConfiguration(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "own.yaml")
	if err := os.WriteFile(path, []byte("bundle: {file: "+path+"}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := config.Load(path)
	if got := paths(t, err); !slices.Equal(got, []string{"bundle.file"}) {
		t.Errorf("%v, want it refused", got)
	}
}
