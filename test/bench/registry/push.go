package registry

import (
	"fmt"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// Image is an image in the registry.
type Image struct {
	Ref    name.Digest // its manifest
	Config v1.Hash     // the digest of its configuration: what some runtimes call the image's ID
}

// String is "127.0.0.1:port/repo@sha256:…", as in a pod's spec.
func (i Image) String() string { return i.Ref.String() }

// Push pushes a new image of one small random layer, tagged.
func (r *Registry) Push(repo, tag string) (Image, error) {
	img, err := randomImage()
	if err != nil {
		return Image{}, err
	}
	ref, err := r.tag(repo, tag)
	if err != nil {
		return Image{}, err
	}
	if err := remote.Write(ref, img); err != nil {
		return Image{}, fmt.Errorf("pushing an image: %w", err)
	}
	return describe(ref.Context(), img)
}

// PushIndex pushes an index of one new image for each platform ("linux/amd64"),
// tagged, and returns its reference and the images in the order given.
func (r *Registry) PushIndex(repo, tag string, platforms ...string) (name.Digest, []Image, error) {
	ref, err := r.tag(repo, tag)
	if err != nil {
		return name.Digest{}, nil, err
	}
	idx := mutate.IndexMediaType(empty.Index, types.OCIImageIndex)
	var children []Image
	for _, p := range platforms {
		platform, err := v1.ParsePlatform(p)
		if err != nil {
			return name.Digest{}, nil, fmt.Errorf("pushing an index: %w", err)
		}
		img, err := randomImage()
		if err != nil {
			return name.Digest{}, nil, err
		}
		child, err := describe(ref.Context(), img)
		if err != nil {
			return name.Digest{}, nil, err
		}
		children = append(children, child)
		idx = mutate.AppendManifests(idx, mutate.IndexAddendum{Add: img, Descriptor: v1.Descriptor{Platform: platform}})
	}
	if err := remote.WriteIndex(ref, idx); err != nil {
		return name.Digest{}, nil, fmt.Errorf("pushing an index: %w", err)
	}
	d, err := idx.Digest()
	if err != nil {
		return name.Digest{}, nil, fmt.Errorf("pushing an index: %w", err)
	}
	return ref.Context().Digest(d.String()), children, nil
}

// Copy puts an image into another repository, where it has the same digest.
func (r *Registry) Copy(img Image, repo string) (Image, error) {
	from, err := remote.Image(img.Ref)
	if err != nil {
		return Image{}, fmt.Errorf("copying an image: %w", err)
	}
	to, err := r.tag(repo, "copied")
	if err != nil {
		return Image{}, err
	}
	if err := remote.Write(to, from); err != nil {
		return Image{}, fmt.Errorf("copying an image: %w", err)
	}
	return describe(to.Context(), from)
}

// Tag moves a tag to what ref names, in the same repository.
func (r *Registry) Tag(ref name.Digest, tag string) error {
	d, err := remote.Get(ref)
	if err != nil {
		return fmt.Errorf("moving a tag: %w", err)
	}
	if err := remote.Tag(ref.Context().Tag(tag), d); err != nil {
		return fmt.Errorf("moving a tag: %w", err)
	}
	return nil
}

func (r *Registry) tag(repo, tag string) (name.Tag, error) {
	repository, err := r.Repository(repo)
	if err != nil {
		return name.Tag{}, fmt.Errorf("naming a repository: %w", err)
	}
	return repository.Tag(tag), nil
}

func randomImage() (v1.Image, error) {
	img, err := random.Image(512, 1)
	if err != nil {
		return nil, fmt.Errorf("making an image: %w", err)
	}
	return mutate.ConfigMediaType(mutate.MediaType(img, types.OCIManifestSchema1), types.OCIConfigJSON), nil
}

func describe(repo name.Repository, img v1.Image) (Image, error) {
	d, err := img.Digest()
	if err != nil {
		return Image{}, fmt.Errorf("describing an image: %w", err)
	}
	c, err := img.ConfigName()
	if err != nil {
		return Image{}, fmt.Errorf("describing an image: %w", err)
	}
	return Image{Ref: repo.Digest(d.String()), Config: c}, nil
}
