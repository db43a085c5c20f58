package serve

import (
	"errors"
	"strings"

	"github.com/hallmark-ca/hallmark/cmd/internal/config"
)

// partError is a part that could not be made, with the setting that it rests on.
type partError struct {
	part    string
	setting string
	mend    string
	err     error
}

func (e *partError) Error() string {
	return e.part + " (" + e.setting + "): " + e.err.Error() + ": " + e.mend
}

func (e *partError) Unwrap() error { return e.err }

// partFinding is the finding for a graph that could not be put together.
func partFinding(err error) finding {
	var part *partError
	if errors.As(err, &part) {
		return finding{what: part.part + " (" + part.setting + ")", err: part.err, mend: part.mend}
	}
	return finding{what: "parts", err: err, mend: "correct the setting or the file that the line names; if it names none, report it"}
}

func kubeconfigError(err error) error {
	return &partError{"Kubernetes API", "attest.kubeconfig", "name a kubeconfig that this account can read and that has a server and an account; in a pod, leave it empty and mount the service account's token", err}
}

// registryError tells which of a registry client's files cannot be used.
func registryError(cfg *config.Images, err error) error {
	setting, mend := "images.registries", "see that the files named there can be read"
	switch text := err.Error(); {
	case strings.Contains(text, "certificate authorities of registries"):
		setting, mend = "images.registries.caFiles", "name PEM files with certificates that this account can read: "+strings.Join(cfg.CAFiles, ", ")
	case cfg.DockerConfig != "" && strings.Contains(text, cfg.DockerConfig):
		setting, mend = "images.registries.dockerConfig", "write a docker config.json that this account can read, or name none"
	}
	return &partError{"registries", setting, mend, err}
}
