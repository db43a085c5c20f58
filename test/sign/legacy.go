package sign

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/sigstore/sigstore/pkg/signature/payload"
)

const (
	simpleSigningType   = "application/vnd.dev.cosign.simplesigning.v1+json"
	signatureAnnotation = "dev.cosignproject.cosign/signature"
)

// Legacy signs the image in the older format: one more layer (a simple-signing
// document, the signature in an annotation) of the image at the tag
// "sha256-<hex>.sig" in the same repository.
func Legacy(ctx context.Context, image name.Digest, k *Key, opts ...Option) error {
	o, digest, err := apply(image, opts)
	if err != nil {
		return err
	}
	document, err := payload.Cosign{Image: image.Context().Digest(digest.String())}.MarshalJSON()
	if err != nil {
		return fmt.Errorf("encoding a simple-signing document: %w", err)
	}
	sig, err := k.sign(document)
	if err != nil {
		return err
	}
	if err := appendSignature(ctx, image, document, o.spoil(sig)); err != nil {
		return fmt.Errorf("attaching a signature to %s: %w", image, err)
	}
	return nil
}

// LegacyTag is where the older signatures of an image are.
func LegacyTag(image name.Digest) (name.Tag, error) {
	d, err := v1.NewHash(image.DigestStr())
	if err != nil {
		return name.Tag{}, fmt.Errorf("reading the image's digest: %w", err)
	}
	return image.Context().Tag(d.Algorithm + "-" + d.Hex + ".sig"), nil
}

func appendSignature(ctx context.Context, image name.Digest, document, sig []byte) error {
	tag, err := LegacyTag(image)
	if err != nil {
		return err
	}
	base, err := remote.Image(tag, remote.WithContext(ctx))
	if isNotFound(err) {
		base, err = mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON), nil
	}
	if err != nil {
		return err
	}
	// cosign writes an empty architecture and operating system.
	cfg, err := base.ConfigFile()
	if err != nil {
		return err
	}
	cfg = cfg.DeepCopy()
	cfg.Architecture, cfg.OS = "", ""
	if base, err = mutate.ConfigFile(base, cfg); err != nil {
		return err
	}
	signed, err := mutate.Append(base, mutate.Addendum{
		Layer:       static.NewLayer(document, simpleSigningType),
		MediaType:   simpleSigningType,
		Annotations: map[string]string{signatureAnnotation: base64.StdEncoding.EncodeToString(sig)},
	})
	if err != nil {
		return err
	}
	return remote.Write(tag, signed, remote.WithContext(ctx))
}

func isNotFound(err error) bool {
	var status *transport.Error
	return errors.As(err, &status) && status.StatusCode == http.StatusNotFound
}
