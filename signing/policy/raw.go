package policy

import (
	"bytes"
	"encoding/json"
)

// The documents as they are written. Every field that upstream's types have
// stands here, so that only what nobody knows is unknown; a json.RawMessage is
// one whose meaning is not needed, or not there yet.

type rawDocument struct {
	APIVersion string          `json:"apiVersion"`
	Kind       string          `json:"kind"`
	Metadata   rawMetadata     `json:"metadata"`
	Spec       rawSpec         `json:"spec"`
	Status     json.RawMessage `json:"status"` // kubectl writes it; nothing is believed of it
}

// rawMetadata has what kubectl and tools write, and of it only the name counts.
type rawMetadata struct {
	Name              string          `json:"name"`
	Annotations       json.RawMessage `json:"annotations"`
	CreationTimestamp json.RawMessage `json:"creationTimestamp"`
	Finalizers        json.RawMessage `json:"finalizers"`
	Generation        json.RawMessage `json:"generation"`
	Labels            json.RawMessage `json:"labels"`
	ManagedFields     json.RawMessage `json:"managedFields"`
	OwnerReferences   json.RawMessage `json:"ownerReferences"`
	ResourceVersion   json.RawMessage `json:"resourceVersion"`
	UID               json.RawMessage `json:"uid"`
}

type rawSpec struct {
	Images      []rawImage      `json:"images"`
	Authorities []rawAuthority  `json:"authorities"`
	Policy      json.RawMessage `json:"policy"`
	Mode        string          `json:"mode"`
	Match       []rawMatch      `json:"match"`
}

type rawImage struct {
	Glob string `json:"glob"`
}

type rawAuthority struct {
	Name             string          `json:"name"`
	Key              *rawKey         `json:"key"`
	Keyless          json.RawMessage `json:"keyless"`
	Static           *rawStatic      `json:"static"`
	Source           json.RawMessage `json:"source"`
	CTLog            json.RawMessage `json:"ctlog"`
	Attestations     json.RawMessage `json:"attestations"`
	RFC3161Timestamp json.RawMessage `json:"rfc3161timestamp"`
	SignatureFormat  string          `json:"signatureFormat"`
}

type rawKey struct {
	SecretRef     json.RawMessage `json:"secretRef"`
	Data          string          `json:"data"`
	KMS           string          `json:"kms"`
	HashAlgorithm string          `json:"hashAlgorithm"`
}

type rawStatic struct {
	Action  string `json:"action"`
	Message string `json:"message"`
}

type rawMatch struct {
	Group             string          `json:"group"`
	Version           string          `json:"version"`
	Resource          string          `json:"resource"`
	Selector          *rawSelector    `json:"selector"`
	NamespaceSelector json.RawMessage `json:"namespaceSelector"`
}

type rawSelector struct {
	MatchLabels      map[string]string `json:"matchLabels"`
	MatchExpressions []rawRequirement  `json:"matchExpressions"`
}

type rawRequirement struct {
	Key      string   `json:"key"`
	Operator string   `json:"operator"`
	Values   []string `json:"values"`
}

// rawNames is read where the whole cannot be: what a broken policy names.
type rawNames struct {
	Metadata struct {
		Name any `json:"name"`
	} `json:"metadata"`
	Spec struct {
		Images []rawImage `json:"images"`
		Mode   any        `json:"mode"`
	} `json:"spec"`
}

// given tells whether a field was written and says something.
func given(raw json.RawMessage) bool {
	switch string(bytes.TrimSpace(raw)) {
	case "", "null", "[]":
		return false
	}
	return true
}
