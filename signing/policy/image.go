package policy

import (
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"

	"github.com/hallmark-ca/hallmark/signing/evidence"
)

// maxImage bounds an image's name in bytes: 255 of repository, 128 of tag, 71
// of digest, and what is between them.
const maxImage = 512

// The grammar that kubelets and runtimes accept (distribution/reference). The
// library reads more than that, such as dots that climb.
var (
	hostPattern = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*(:[0-9]{1,5})?$`)
	ipv6Pattern = regexp.MustCompile(`^\[([0-9a-f:.]+)\](:[0-9]{1,5})?$`)
	pathPattern = regexp.MustCompile(`^[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*)*$`)
	tagPattern  = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}$`)
)

// hub is Docker Hub's registry, under the name that globs are written for;
// hubAliases are other names that serve the same.
const hub = "index.docker.io"

var hubAliases = []string{"docker.io", "registry-1.docker.io", "registry.hub.docker.com"}

// Image is an image's name as a pod's spec writes it, taken apart. It is
// immutable; the zero value names nothing.
type Image struct {
	original   string
	name       string
	repository string
	digest     string
	names      []string // all that globs are held against
}

// ParseImage reads a name as runtimes do: short names are Docker Hub's, a name
// without tag and digest means latest, and a digest beats a tag. Only sha256
// digests are known.
func ParseImage(image string) (Image, error) {
	if len(image) > maxImage {
		return Image{}, fmt.Errorf("parsing image name: %d bytes, at most %d are allowed", len(image), maxImage)
	}
	ref, err := name.ParseReference(image, name.WeakValidation)
	if err != nil {
		return Image{}, fmt.Errorf("parsing image name: %w", err)
	}
	host, err := canonicalHost(ref.Context().RegistryStr())
	if err != nil {
		return Image{}, fmt.Errorf("parsing image name: %w", err)
	}
	path := ref.Context().RepositoryStr()
	if !pathPattern.MatchString(path) || len(host)+1+len(path) > 255 {
		return Image{}, fmt.Errorf("parsing image name: %q is no path in a registry", path)
	}
	i := Image{original: image, repository: host + "/" + path}
	var suffix string
	switch ref := ref.(type) {
	case name.Digest:
		if i.digest = ref.DigestStr(); !evidence.ValidDigest(i.digest) {
			return Image{}, fmt.Errorf("parsing image name: %q is no sha256 digest", i.digest)
		}
		suffix = "@" + i.digest
	case name.Tag:
		if !tagPattern.MatchString(ref.TagStr()) {
			return Image{}, fmt.Errorf("parsing image name: %q is no tag", ref.TagStr())
		}
		suffix = ":" + ref.TagStr()
	default:
		return Image{}, errors.New("parsing image name: neither tag nor digest")
	}
	i.name = i.repository + suffix
	i.names = []string{i.name}
	if same := otherName(host, path); same != "" {
		i.names = append(i.names, same+suffix)
	}
	if image != i.name {
		i.names = append(i.names, image)
	}
	return i, nil
}

// canonicalHost brings a registry's host into the one form in which it is
// compared: hosts know no case, and an IPv6 address has many spellings.
func canonicalHost(host string) (string, error) {
	host = strings.ToLower(host)
	if m := ipv6Pattern.FindStringSubmatch(host); m != nil {
		addr, err := netip.ParseAddr(m[1])
		if err != nil || !addr.Is6() {
			return "", fmt.Errorf("%q is no IPv6 address", m[1])
		}
		return "[" + addr.String() + "]" + m[2], nil
	}
	if !hostPattern.MatchString(host) {
		return "", fmt.Errorf("%q is no registry", host)
	}
	return host, nil
}

// otherName gives a repository the name for which globs are written, where the
// pod wrote another that leads to the same registry: else whoever writes a pod
// could leave a strict policy for a laxer one by its spelling.
func otherName(host, path string) string {
	bare := strings.TrimSuffix(host, ":443")
	for _, alias := range hubAliases {
		if bare == alias {
			bare = hub
		}
	}
	if bare == hub && !strings.Contains(path, "/") {
		path = "library/" + path
	}
	if same := bare + "/" + path; same != host+"/"+path {
		return same
	}
	return ""
}

// String returns the name as it was written.
func (i Image) String() string { return i.original }

// Name returns the normalised name, such as index.docker.io/library/nginx:latest;
// with the digest instead of the tag where there is one.
func (i Image) Name() string { return i.name }

// Repository returns the normalised name without tag and digest.
func (i Image) Repository() string { return i.repository }

// Digest returns the digest that the name pins, or "" for a tag.
func (i Image) Digest() string { return i.digest }
