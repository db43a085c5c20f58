package kube

import (
	"crypto/sha256"
	"slices"
	"strconv"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

const (
	// manager is our name in the API server's record of who wrote what.
	manager = "hallmark"

	trustDomainMark = "hallmark.dev/trust-domain"
	sequenceMark    = "hallmark.dev/bundle-sequence"
	managedByLabel  = "app.kubernetes.io/managed-by"

	maxManagers = 8  // that are named
	maxManager  = 64 // bytes of a name that are kept
)

// object is what is kept of a namespace, a ConfigMap or a ClusterTrustBundle.
type object struct {
	metav1.TypeMeta
	metav1.ObjectMeta // name, namespace, UID and version alone

	terminating bool
	immutable   bool
	has         bool     // there is a content
	sum         checksum // of the content
	markedFor   string   // the trust domain that it says it is of
	sequence    uint64   // that we wrote on it; 0: none, or another did
	ours        bool     // a Hallmark holds a part of it
	marked      bool     // its trust domain was written by a Hallmark
	writers     []string // managers other than us that hold the content, sorted
}

// checksum is of a bundle in PEM.
type checksum [sha256.Size]byte

// DeepCopyObject implements runtime.Object.
func (o *object) DeepCopyObject() runtime.Object {
	c := *o
	c.writers = slices.Clone(o.writers)
	return &c
}

// GetObjectKind implements runtime.Object.
func (o *object) GetObjectKind() schema.ObjectKind { return &o.TypeMeta }

// objects is a list of them.
type objects struct {
	metav1.TypeMeta
	metav1.ListMeta
	Items []object
}

// DeepCopyObject implements runtime.Object.
func (l *objects) DeepCopyObject() runtime.Object {
	c := *l
	c.Items = make([]object, len(l.Items))
	for i := range l.Items {
		c.Items[i] = *l.Items[i].DeepCopyObject().(*object)
	}
	return &c
}

// GetObjectKind implements runtime.Object.
func (l *objects) GetObjectKind() schema.ObjectKind { return &l.TypeMeta }

// metaOf keeps what is used of any object.
func metaOf(m metav1.Object) object {
	return object{
		ObjectMeta: metav1.ObjectMeta{
			Name: m.GetName(), Namespace: m.GetNamespace(), UID: m.GetUID(), ResourceVersion: m.GetResourceVersion(),
			// The API server's sign that a streamed list is complete.
			Annotations: only(m.GetAnnotations(), metav1.InitialEventsAnnotationKey),
		},
		terminating: m.GetDeletionTimestamp() != nil,
	}
}

func only(all map[string]string, key string) map[string]string {
	if v, ok := all[key]; ok {
		return map[string]string{key: v}
	}
	return nil
}

// objectOf keeps what is used of an object whose content lies at path.
func objectOf(u *unstructured.Unstructured, path []string) object {
	o := metaOf(u)
	o.immutable, _, _ = unstructured.NestedBool(u.Object, "immutable")
	content, has, err := unstructured.NestedString(u.Object, path...)
	if o.has = has && err == nil; o.has {
		o.sum = sha256.Sum256([]byte(content))
	}
	o.markedFor = u.GetAnnotations()[trustDomainMark]
	fields := make([]string, len(path))
	for i, name := range path {
		fields[i] = "f:" + name
	}
	// Raw, since a record that does not parse must not hide the others.
	records, _, _ := unstructured.NestedFieldNoCopy(u.Object, "metadata", "managedFields")
	list, _ := records.([]any)
	for _, r := range list {
		record, ok := r.(map[string]any)
		if !ok {
			continue
		}
		name, _ := record["manager"].(string)
		if name == manager && record["operation"] == string(metav1.ManagedFieldsOperationApply) {
			o.ours = true
			o.marked = holds(record, "f:metadata", "f:annotations", "f:"+trustDomainMark)
			if holds(record, "f:metadata", "f:annotations", "f:"+sequenceMark) {
				o.sequence, _ = strconv.ParseUint(u.GetAnnotations()[sequenceMark], 10, 64)
			}
			continue
		}
		if holds(record, fields...) {
			o.writers = append(o.writers, strings.ToValidUTF8(name[:min(len(name), maxManager)], "�"))
		}
	}
	slices.Sort(o.writers)
	o.writers = slices.Compact(o.writers)
	o.writers = o.writers[:min(len(o.writers), maxManagers)]
	return o
}

// holds tells whether the record names the field.
func holds(record map[string]any, field ...string) bool {
	at, ok := record["fieldsV1"].(map[string]any)
	for i, name := range field {
		if !ok {
			return false
		}
		var next any
		if next, ok = at[name]; !ok {
			return false
		}
		if i == len(field)-1 {
			return true
		}
		at, ok = next.(map[string]any)
	}
	return false
}
