package kube

import (
	"net/netip"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/hallmark-ca/hallmark/attest"
)

// wire is one object as the API server sends it, reduced to what is used: what
// its type does not name is passed over by the decoder and never allocated.
type wire interface {
	// object makes what is kept of it. Texts that many objects share are taken
	// from pool.
	object(cluster string, pool *pool) *object
}

// wireMeta is all that is used of a Node or a ServiceAccount.
type wireMeta struct {
	Metadata struct {
		Name              string            `json:"name"`
		Namespace         string            `json:"namespace"`
		UID               string            `json:"uid"`
		ResourceVersion   string            `json:"resourceVersion"`
		DeletionTimestamp *string           `json:"deletionTimestamp"`
		Labels            map[string]string `json:"labels"`
		Annotations       struct {
			InitialEventsEnd string `json:"k8s.io/initial-events-end"`
		} `json:"annotations"`
	} `json:"metadata"`
}

func (w *wireMeta) object(_ string, pool *pool) *object {
	m := &w.Metadata
	return &object{
		name: name{pool.text(m.Namespace), m.Name}, uid: m.UID, version: m.ResourceVersion,
		synced: m.Annotations.InitialEventsEnd == "true",
	}
}

// wirePod is what is used of a Pod.
type wirePod struct {
	wireMeta
	Spec struct {
		NodeName            string          `json:"nodeName"`
		ServiceAccountName  string          `json:"serviceAccountName"`
		HostNetwork         bool            `json:"hostNetwork"`
		Containers          []wireContainer `json:"containers"`
		InitContainers      []wireContainer `json:"initContainers"`
		EphemeralContainers []wireContainer `json:"ephemeralContainers"`
		Volumes             []struct {
			Name  string `json:"name"`
			Image *struct {
				Reference string `json:"reference"`
			} `json:"image"`
		} `json:"volumes"`
	} `json:"spec"`
	Status struct {
		Phase                      string       `json:"phase"`
		PodIP                      string       `json:"podIP"`
		PodIPs                     []wireIP     `json:"podIPs"`
		ContainerStatuses          []wireStatus `json:"containerStatuses"`
		InitContainerStatuses      []wireStatus `json:"initContainerStatuses"`
		EphemeralContainerStatuses []wireStatus `json:"ephemeralContainerStatuses"`
	} `json:"status"`
}

type wireContainer struct {
	Name          string `json:"name"`
	Image         string `json:"image"`
	RestartPolicy string `json:"restartPolicy"`
}

type wireIP struct {
	IP string `json:"ip"`
}

type wireStatus struct {
	Name    string `json:"name"`
	ImageID string `json:"imageID"`
	State   struct {
		Running *struct{} `json:"running"`
	} `json:"state"`
	VolumeMounts []struct {
		Name         string `json:"name"`
		VolumeStatus struct {
			Image struct {
				ImageRef string `json:"imageRef"`
			} `json:"image"`
		} `json:"volumeStatus"`
	} `json:"volumeMounts"`
}

func (w *wirePod) object(cluster string, pool *pool) *object {
	o := w.wireMeta.object(cluster, pool)
	p := &attest.Pod{
		Cluster:        cluster,
		Ref:            attest.PodRef{Namespace: o.name.namespace, Name: o.name.name, UID: o.uid},
		ServiceAccount: pool.text(w.Spec.ServiceAccountName),
		Node:           pool.text(w.Spec.NodeName),
		Phase:          pool.text(w.Status.Phase),
		Terminating:    w.Metadata.DeletionTimestamp != nil,
		HostNetwork:    w.Spec.HostNetwork,
		IPs:            w.addresses(),
		Labels:         pool.labels(w.Metadata.Labels),
		Containers:     w.containers(pool),
	}
	o.pod = p
	return o
}

func (w *wirePod) addresses() []netip.Addr {
	texts := w.Status.PodIPs
	if len(texts) == 0 && w.Status.PodIP != "" {
		texts = []wireIP{{w.Status.PodIP}}
	}
	var addresses []netip.Addr
	for _, t := range texts {
		if a, err := netip.ParseAddr(t.IP); err == nil {
			addresses = append(addresses, a.Unmap())
		}
	}
	return addresses
}

// containers joins what the spec wants with what the status says runs. An image
// volume has no status of its own: its image is told with the mounts of each
// container that has it.
func (w *wirePod) containers(pool *pool) []attest.Container {
	spec, status := &w.Spec, &w.Status
	containers := make([]attest.Container, 0, len(spec.Containers)+len(spec.InitContainers)+len(spec.EphemeralContainers))
	add := func(kind attest.ContainerKind, wanted []wireContainer, statuses []wireStatus) {
		for _, c := range wanted {
			k := kind
			if k == attest.ContainerInit && c.RestartPolicy == "Always" {
				k = attest.ContainerSidecar
			}
			one := attest.Container{Name: pool.text(c.Name), Kind: k, Image: pool.text(c.Image)}
			for _, s := range statuses {
				if s.Name == c.Name {
					one.ImageID, one.Running = pool.text(s.ImageID), s.State.Running != nil
				}
			}
			containers = append(containers, one)
		}
	}
	add(attest.ContainerInit, spec.InitContainers, status.InitContainerStatuses)
	add(attest.ContainerApp, spec.Containers, status.ContainerStatuses)
	add(attest.ContainerEphemeral, spec.EphemeralContainers, status.EphemeralContainerStatuses)
	for _, v := range spec.Volumes {
		if v.Image != nil {
			containers = append(containers, attest.Container{
				Name: pool.text(v.Name), Kind: attest.ContainerVolume, Image: pool.text(v.Image.Reference), ImageID: pool.text(w.mounted(v.Name)),
			})
		}
	}
	return containers
}

// mounted returns what image is mounted as volume, "" where no status says so or
// two disagree: then nothing is known.
func (w *wirePod) mounted(volume string) string {
	image := ""
	for _, statuses := range [][]wireStatus{w.Status.InitContainerStatuses, w.Status.ContainerStatuses, w.Status.EphemeralContainerStatuses} {
		for _, s := range statuses {
			for _, m := range s.VolumeMounts {
				ref := m.VolumeStatus.Image.ImageRef
				if m.Name != volume || ref == "" {
					continue
				}
				if image != "" && image != ref {
					return ""
				}
				image = ref
			}
		}
	}
	return image
}

// name is what an object goes by; the namespace of a node is empty.
type name struct{ namespace, name string }

// object is what passes from a decoder through client-go's reflector to the
// view.
type object struct {
	name    name
	uid     string
	version string
	synced  bool        // the bookmark that ends the initial events
	pod     *attest.Pod // pods alone
}

// GetObjectKind implements runtime.Object.
func (*object) GetObjectKind() schema.ObjectKind { return schema.EmptyObjectKind }

// DeepCopyObject implements runtime.Object.
func (o *object) DeepCopyObject() runtime.Object { c := *o; return &c }

// GetObjectMeta implements metav1.ObjectMetaAccessor, for the reflector alone.
func (o *object) GetObjectMeta() metav1.Object {
	m := &metav1.ObjectMeta{Namespace: o.name.namespace, Name: o.name.name, ResourceVersion: o.version}
	if o.synced {
		m.Annotations = map[string]string{metav1.InitialEventsAnnotationKey: "true"}
	}
	return m
}

// objects is a list of them.
type objects struct {
	metav1.ListMeta
	Items []*object
}

// GetObjectKind implements runtime.Object.
func (*objects) GetObjectKind() schema.ObjectKind { return schema.EmptyObjectKind }

// DeepCopyObject implements runtime.Object.
func (l *objects) DeepCopyObject() runtime.Object {
	c := *l
	c.Items = append([]*object(nil), l.Items...)
	return &c
}

// labelsKey writes labels so that equal ones are equal.
func labelsKey(names []string, labels map[string]string) string {
	var b strings.Builder
	for _, n := range names {
		b.WriteString(n)
		b.WriteByte(0)
		b.WriteString(labels[n])
		b.WriteByte(0)
	}
	return b.String()
}
