package sign

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"
	intoto "github.com/in-toto/attestation/go/v1"
	"github.com/secure-systems-lab/go-securesystemslib/dsse"
	protobundle "github.com/sigstore/protobuf-specs/gen/pb-go/bundle/v1"
	protocommon "github.com/sigstore/protobuf-specs/gen/pb-go/common/v1"
	protodsse "github.com/sigstore/protobuf-specs/gen/pb-go/dsse"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/types/known/structpb"
)

const (
	bundleType  = "application/vnd.dev.sigstore.bundle.v0.3+json"
	payloadType = "application/vnd.in-toto+json"
	emptyType   = "application/vnd.oci.empty.v1+json"
)

// Bundle signs the image and attaches the signature as cosign 3 does by
// default: a Sigstore bundle (a DSSE envelope around an in-toto statement) in a
// manifest that refers to the image. Where the registry has no referrers API
// the manifest is listed in the index at tag "sha256-<hex>", without
// annotations. It returns the digest of the manifest it pushed.
func Bundle(ctx context.Context, image name.Digest, k *Key, opts ...Option) (v1.Hash, error) {
	b, predicateType, err := k.bundle(image, opts)
	if err != nil {
		return v1.Hash{}, err
	}
	d, err := attach(ctx, image, b, predicateType)
	if err != nil {
		return v1.Hash{}, fmt.Errorf("attaching a bundle to %s: %w", image, err)
	}
	return d, nil
}

func (k *Key) bundle(image name.Digest, opts []Option) (b []byte, predicateType string, err error) {
	o, digest, err := apply(image, opts)
	if err != nil {
		return nil, "", err
	}
	payload, err := protojson.Marshal(&intoto.Statement{
		Type: intoto.StatementTypeUri,
		Subject: []*intoto.ResourceDescriptor{{
			Digest:      map[string]string{digest.Algorithm: digest.Hex},
			Annotations: &structpb.Struct{},
		}},
		PredicateType: o.predicateType,
		Predicate:     &structpb.Struct{},
	})
	if err != nil {
		return nil, "", fmt.Errorf("encoding a statement: %w", err)
	}
	sig, err := k.sign(dsse.PAE(payloadType, payload))
	if err != nil {
		return nil, "", err
	}
	hint, err := k.hint()
	if err != nil {
		return nil, "", err
	}
	b, err = protojson.Marshal(&protobundle.Bundle{
		MediaType: bundleType,
		VerificationMaterial: &protobundle.VerificationMaterial{
			Content: &protobundle.VerificationMaterial_PublicKey{PublicKey: &protocommon.PublicKeyIdentifier{Hint: hint}},
		},
		Content: &protobundle.Bundle_DsseEnvelope{DsseEnvelope: &protodsse.Envelope{
			Payload: payload, PayloadType: payloadType,
			Signatures: []*protodsse.Signature{{Sig: o.spoil(sig)}},
		}},
	})
	if err != nil {
		return nil, "", fmt.Errorf("encoding a bundle: %w", err)
	}
	return b, o.predicateType, nil
}

func attach(ctx context.Context, image name.Digest, bundle []byte, predicateType string) (v1.Hash, error) {
	with := remote.WithContext(ctx)
	subject, err := remote.Head(image, with)
	if err != nil {
		return v1.Hash{}, err
	}
	config := static.NewLayer([]byte("{}"), emptyType)
	layer := static.NewLayer(bundle, bundleType)
	for _, l := range []v1.Layer{config, layer} {
		if err := remote.WriteLayer(image.Context(), l, with); err != nil {
			return v1.Hash{}, err
		}
	}
	m := referrer{ArtifactType: bundleType, Manifest: v1.Manifest{
		SchemaVersion: 2,
		MediaType:     types.OCIManifestSchema1,
		Annotations: map[string]string{
			"org.opencontainers.image.created":  time.Now().UTC().Format(time.RFC3339),
			"dev.sigstore.bundle.content":       "dsse-envelope",
			"dev.sigstore.bundle.predicateType": predicateType,
		},
		Subject: &v1.Descriptor{MediaType: subject.MediaType, Digest: subject.Digest, Size: subject.Size},
	}}
	if m.Config, err = describe(config, emptyType); err != nil {
		return v1.Hash{}, err
	}
	m.Config.ArtifactType = bundleType
	l, err := describe(layer, bundleType)
	if err != nil {
		return v1.Hash{}, err
	}
	m.Layers = []v1.Descriptor{l}
	raw, err := m.RawManifest()
	if err != nil {
		return v1.Hash{}, err
	}
	d, err := static.NewLayer(raw, types.OCIManifestSchema1).Digest()
	if err != nil {
		return v1.Hash{}, err
	}
	// Put also writes the index at the fallback tag, where it has to.
	if err := remote.Put(image.Context().Digest(d.String()), m, with); err != nil {
		return v1.Hash{}, err
	}
	return d, bareFallback(ctx, image, subject.Digest)
}

// bareFallback takes the annotations from the index at the fallback tag, if
// there is one: cosign writes none there, so that a verifier has to fetch each
// manifest to learn what it is.
func bareFallback(ctx context.Context, image name.Digest, subject v1.Hash) error {
	tag := image.Context().Tag(subject.Algorithm + "-" + subject.Hex)
	idx, err := remote.Index(tag, remote.WithContext(ctx))
	if isNotFound(err) {
		return nil
	}
	if err != nil {
		return err
	}
	m, err := idx.IndexManifest()
	if err != nil {
		return err
	}
	bare := index{*m.DeepCopy()}
	for i := range bare.Manifests {
		bare.Manifests[i].Annotations = nil
	}
	return remote.Put(tag, bare, remote.WithContext(ctx))
}

type index struct{ v1.IndexManifest }

func (i index) RawManifest() ([]byte, error) { return json.Marshal(i.IndexManifest) }

func (index) MediaType() (types.MediaType, error) { return types.OCIImageIndex, nil }

// referrer is a manifest with the artifactType that OCI 1.1 added.
type referrer struct {
	v1.Manifest
	ArtifactType string `json:"artifactType,omitempty"`
}

func (r referrer) RawManifest() ([]byte, error) { return json.Marshal(r) }

func (referrer) MediaType() (types.MediaType, error) { return types.OCIManifestSchema1, nil }

func describe(l v1.Layer, mediaType types.MediaType) (v1.Descriptor, error) {
	d, err := l.Digest()
	if err != nil {
		return v1.Descriptor{}, err
	}
	size, err := l.Size()
	if err != nil {
		return v1.Descriptor{}, err
	}
	return v1.Descriptor{MediaType: mediaType, Digest: d, Size: size}, nil
}
