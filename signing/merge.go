package signing

import (
	"crypto/sha256"
	"fmt"
	"maps"
	"slices"

	"github.com/hallmark-ca/hallmark/signing/evidence"
)

// merge joins what was known of a subject with what a registry shows now. A
// signature proves itself: that the registry does not show it any more, by
// fault or by malice, takes nothing back. Where all together are more than is
// kept, those are kept first that somebody wants, then those that are shown now.
func merge(old, found *evidence.Evidence, useful func(evidence.Signature) bool) *evidence.Evidence {
	if old == nil {
		return found
	}
	shown := map[[sha256.Size]byte]bool{}
	for _, s := range found.Signatures {
		shown[identify(s)] = true
	}
	var wanted, rest []evidence.Signature
	for _, s := range old.Signatures {
		switch {
		case shown[identify(s)]:
		case useful(s):
			wanted = append(wanted, s)
		default:
			rest = append(rest, s)
		}
	}
	merged := *found
	merged.Signatures = fit(slices.Concat(wanted, found.Signatures, rest))
	merged.Manifests = maps.Clone(old.Manifests)
	maps.Copy(merged.Manifests, found.Manifests)
	if merged.Check() != nil { // more manifests than are kept
		merged.Manifests = found.Manifests
	}
	return &merged
}

// fit takes signatures, in their order, as far as the bounds allow.
func fit(all []evidence.Signature) []evidence.Signature {
	var fitting []evidence.Signature
	bundles, legacy, total := 0, 0, 0
	for _, s := range all {
		size := len(s.Bundle) + len(s.Payload)
		for k, v := range s.Annotations {
			size += len(k) + len(v)
		}
		count, limit := &bundles, evidence.MaxBundles
		if s.Format == evidence.FormatLegacy {
			count, limit = &legacy, evidence.MaxLegacy
		}
		if *count == limit || total+size > evidence.MaxSignatures {
			continue
		}
		*count++
		total += size
		fitting = append(fitting, s)
	}
	return fitting
}

// identify names what a signature is, wherever it was found.
func identify(s evidence.Signature) [sha256.Size]byte {
	h := sha256.New()
	fmt.Fprintf(h, "%q %q %q", s.Format, s.Bundle, s.Payload)
	for _, key := range slices.Sorted(maps.Keys(s.Annotations)) {
		fmt.Fprintf(h, " %q=%q", key, s.Annotations[key])
	}
	return [sha256.Size]byte(h.Sum(nil))
}

func sameSignatures(a, b *evidence.Evidence) bool {
	ids := func(e *evidence.Evidence) map[[sha256.Size]byte]bool {
		m := map[[sha256.Size]byte]bool{}
		for _, s := range e.Signatures {
			m[identify(s)] = true
		}
		return m
	}
	return maps.Equal(ids(a), ids(b)) && len(a.Manifests) == len(b.Manifests)
}
