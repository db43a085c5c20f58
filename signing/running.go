package signing

import (
	"strings"

	"github.com/hallmark-ca/hallmark/signing/evidence"
)

// Running is what a pod's status says that a container runs.
type Running struct {
	Digest string // sha256:…; "" where the status does not say yet
	// Config: Digest names the image's configuration, as some runtimes name
	// images that they have without a repository.
	Config bool
	// Unreadable: the status says something that is no digest.
	Unreadable bool
}

// ParseImageID reads status.*.imageID in the forms that runtimes write:
// REPOSITORY@sha256:HEX, also behind a scheme (docker-pullable://), and the bare
// ID of an image's configuration, with or without sha256: and a scheme. The
// repository is not looked at: the spec names it.
func ParseImageID(id string) Running {
	if id == "" {
		return Running{}
	}
	if _, rest, found := strings.Cut(id, "://"); found {
		id = rest
	}
	if at := strings.LastIndexByte(id, '@'); at >= 0 {
		if digest := id[at+1:]; at > 0 && evidence.ValidDigest(digest) {
			return Running{Digest: digest}
		}
		return Running{Unreadable: true}
	}
	if !strings.HasPrefix(id, "sha256:") {
		id = "sha256:" + id
	}
	if evidence.ValidDigest(id) {
		return Running{Digest: id, Config: true}
	}
	return Running{Unreadable: true}
}
