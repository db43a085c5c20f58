package registry

import (
	"regexp"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"

	"github.com/hallmark-ca/hallmark/attest"
	"github.com/hallmark-ca/hallmark/signing/evidence"
)

// The grammar of names, as the OCI distribution specification has it; the
// library's is wider: it takes "..", and user information in hosts.
var (
	hostForm = regexp.MustCompile(`^(?:(?:[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?)(?:\.[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?)*|\[[0-9a-f:.]+\])(?::[0-9]{1,5})?$`)
	pathForm = regexp.MustCompile(`^[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*)*$`)
	tagForm  = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9._-]{0,127}$`)
)

const (
	maxName       = 1024
	maxHost       = 255
	maxRepository = 255
)

// target is a parsed image name. One of tag and digest is set.
type target struct {
	repo        name.Repository
	tag, digest string
}

// path is a URL's path below the repository.
func (t target) path(kind, id string) string {
	return "/v2/" + t.repo.RepositoryStr() + "/" + kind + "/" + id
}

// parse reads an image's name in full: short names are completed as Docker
// does, hosts are lower-cased, and a tag beside a digest says nothing.
func (c *Client) parse(image string) (target, error) {
	refuse := func(why string) (target, error) {
		return target{}, attest.Deny(attest.ImageReferenceInvalid, attest.Escape(image), "%s", why)
	}
	if len(image) > maxName {
		return refuse("the name is longer than 1024 bytes")
	}
	rest, digest, byDigest := strings.Cut(image, "@")
	if byDigest && !evidence.ValidDigest(digest) {
		return refuse("what follows the @ is no sha256 digest in lower case (other algorithms are not taken)")
	}
	// A tag is what follows a colon in the last segment.
	base, tag := rest, ""
	if i := strings.LastIndexByte(rest, ':'); i > strings.LastIndexByte(rest, '/') {
		base, tag = rest[:i], rest[i+1:]
		if !tagForm.MatchString(tag) {
			return refuse("the tag is malformed")
		}
	}
	parsed, err := name.NewRepository(base)
	if err != nil {
		return refuse(attest.Escape(err.Error()))
	}
	host, path := strings.ToLower(parsed.RegistryStr()), parsed.RepositoryStr()
	if !hostForm.MatchString(host) || len(host) > maxHost {
		return refuse("the registry's host is malformed")
	}
	if !pathForm.MatchString(path) || len(path) > maxRepository {
		return refuse("the repository's path is malformed")
	}
	var opts []name.Option
	if c.guard.insecure[bare(host)] {
		opts = append(opts, name.Insecure)
	}
	t := target{digest: digest}
	if t.repo, err = name.NewRepository(host+"/"+path, opts...); err != nil {
		return refuse(attest.Escape(err.Error()))
	}
	switch {
	case byDigest:
	case tag == "":
		t.tag = "latest"
	default:
		t.tag = tag
	}
	return t, nil
}

// bare takes the default ports from a host, so that HOST, HOST:443 and HOST:80
// are one; which of the ports is meant, the scheme says.
func bare(host string) string {
	host = strings.ToLower(host)
	if h, ok := strings.CutSuffix(host, ":443"); ok {
		host = h
	} else if h, ok := strings.CutSuffix(host, ":80"); ok {
		host = h
	}
	if host == "docker.io" {
		return name.DefaultRegistry
	}
	return host
}

// hosts is a list of hosts as a set.
func hosts(list []string) map[string]bool {
	set := make(map[string]bool, len(list))
	for _, h := range list {
		set[bare(h)] = true
	}
	return set
}
