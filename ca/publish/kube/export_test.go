package kube

import (
	"encoding/json"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"

	"github.com/hallmark-ca/hallmark/ca/publish"
)

// Wanted of a trust domain and sequence; the content is text.
func Wanted(trustDomain string, sequence uint64, content string) *wanted {
	return &wanted{trustDomain: trustDomain, sequence: sequence, content: content, sum: sumOf([]byte(content))}
}

// Seen is a ConfigMap in the API's JSON as it is kept; "" is none.
func Seen(raw string) (*object, error) {
	if raw == "" {
		return nil, nil
	}
	u := &unstructured.Unstructured{}
	if err := json.Unmarshal([]byte(raw), &u.Object); err != nil {
		return nil, err
	}
	o := objectOf(u, []string{"data", IstioKey})
	return &o, nil
}

// Writers are the managers that hold the content, and Sequence is what we wrote.
func (o *object) Writers() []string { return o.writers }

func (o *object) Sequence() uint64 { return o.sequence }

// Decide returns the move by name, whom it overrules, and the problem.
func Decide(o *object, w *wanted, takeOver []string) (move, from, problem string) {
	v := decide(o, w, takeOver)
	return [...]string{"keep", "apply", "force"}[v.move], v.from, v.problem
}

// Contest is how often a writer was overruled.
type Contest struct{ c contest }

// Overrule is [contest.overrule].
func (c *Contest) Overrule(writer string, now time.Time) (wait time.Duration) {
	c.c, wait = c.c.overrule(writer, now)
	return wait
}

// View is a view of ConfigMaps in the hands of a test.
type View struct{ v *view }

// NewView returns one whose readers take delay.
func NewView(now func() time.Time, delay time.Duration) *View {
	t := &target{kind: configMaps, name: IstioConfigMap}
	return &View{newView(&Config{Now: now, KubeletDelay: delay}, map[kind]*target{configMaps: t}, func(key) {})}
}

// Want takes in a bundle.
func (v *View) Want(w *wanted) { v.v.want(w) }

// Lists says that both lists are complete: the namespaces named, and no objects.
func (v *View) Lists(names ...string) {
	var all []any
	for _, name := range names {
		all = append(all, namespaceOf(name, name))
	}
	if err := (store{v.v, namespaces}).Replace(all, ""); err != nil {
		panic(err)
	}
	if err := (store{v.v, configMaps}).Replace(nil, ""); err != nil {
		panic(err)
	}
}

func namespaceOf(name, uid string) *object {
	return &object{ObjectMeta: metav1.ObjectMeta{Name: name, UID: types.UID(uid)}}
}

// Made has the watch tell of a namespace.
func (v *View) Made(name, uid string) { v.v.put(namespaces, namespaceOf(name, uid), true) }

// Gone has the watch tell that a namespace is gone.
func (v *View) Gone(name string) { v.v.remove(namespaces, namespaceOf(name, "")) }

// Terminates has the watch tell that a namespace terminates.
func (v *View) Terminates(name, uid string) {
	ns := namespaceOf(name, uid)
	ns.terminating = true
	v.v.put(namespaces, ns, true)
}

// Holds has the watch tell of an object of ours with a content; "" that it is
// gone.
func (v *View) Holds(namespace, content string) {
	o := &object{ObjectMeta: metav1.ObjectMeta{Name: IstioConfigMap, Namespace: namespace}, ours: true, marked: true, has: true, sum: sumOf([]byte(content)), markedFor: "cluster.local"}
	if content == "" {
		v.v.remove(configMaps, o)
		return
	}
	v.v.put(configMaps, o, true)
}

// Failing has the watch of objects fail.
func (v *View) Failing(err error) { v.v.told(configMaps, err) }

// Report is [Publisher.Report].
func (v *View) Report() []publish.Reader { return v.v.report() }
