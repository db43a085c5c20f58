package kube_test

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/hallmark-ca/hallmark/ca/publish/kube"
)

// held is a record of a manager that holds the content, the marks, or both.
func held(manager, operation string, content, marks bool) map[string]any {
	fields := map[string]any{}
	if content {
		fields["f:data"] = map[string]any{"f:" + kube.IstioKey: map[string]any{}}
	}
	if marks {
		fields["f:metadata"] = map[string]any{"f:annotations": map[string]any{"f:hallmark.dev/trust-domain": map[string]any{}, "f:hallmark.dev/bundle-sequence": map[string]any{}}}
	}
	return map[string]any{"manager": manager, "operation": operation, "apiVersion": "v1", "fieldsType": "FieldsV1", "fieldsV1": fields}
}

// configMap is an object in the API's JSON.
func configMap(tb testing.TB, content, trustDomain, sequence string, more map[string]any, records ...map[string]any) string {
	tb.Helper()
	meta := map[string]any{"name": kube.IstioConfigMap, "namespace": "a", "managedFields": records, "annotations": map[string]any{}}
	if trustDomain != "" {
		meta["annotations"] = map[string]any{"hallmark.dev/trust-domain": trustDomain, "hallmark.dev/bundle-sequence": sequence}
	}
	object := map[string]any{"metadata": meta}
	if content != "" {
		object["data"] = map[string]any{kube.IstioKey: content}
	}
	for k, v := range more {
		object[k] = v
	}
	raw, err := json.Marshal(object)
	if err != nil {
		tb.Fatal(err)
	}
	return string(raw)
}

func TestDecide(t *testing.T) {
	t.Parallel()
	const td = "cluster.local"
	ours := held("hallmark", "Apply", true, true)
	marks := held("hallmark", "Apply", false, true)
	rest := held("hallmark", "Apply", false, false)
	by := func(name string) map[string]any { return held(name, "Update", true, false) }
	for _, tc := range []struct {
		name     string
		raw      string
		takeOver []string
		move     string
		from     string
		problem  string // a part of it; "": none
	}{
		{"none", "", nil, "apply", "", ""},
		{"ours and right", configMap(t, "new", td, "7", nil, ours), nil, "keep", "", ""},
		{"ours of before", configMap(t, "old", td, "6", nil, ours), nil, "force", "", ""},
		{"ours of later", configMap(t, "newer", td, "8", nil, ours), nil, "keep", "", "this replica is behind"},
		{"a later sequence by hand", configMap(t, "old", td, "8", nil, held("hallmark", "Apply", true, false), held("kubectl-edit", "Update", false, true)), nil, "force", "", ""},
		{"right, sequence of before", configMap(t, "new", td, "6", nil, ours), nil, "force", "", ""},
		{"right, mark gone", configMap(t, "new", "", "", nil, held("hallmark", "Apply", true, false)), nil, "force", "", ""},
		{"right, and another's", configMap(t, "new", "", "", nil, by("pilot-discovery")), nil, "keep", "", ""},
		{"right, and of nobody", configMap(t, "new", "", "", nil), nil, "force", "", ""},
		{"edited by hand", configMap(t, "x", td, "7", nil, marks, by("kubectl-edit")), nil, "force", "", ""},
		{"edited by hand, marks too", configMap(t, "x", "elsewhere", "9", nil, rest, held("kubectl-edit", "Update", true, true)), nil, "force", "", ""},
		{"emptied by hand", configMap(t, "", td, "7", nil, marks), nil, "force", "", ""},
		{"edited by something", configMap(t, "x", td, "7", nil, marks, by("thing")), nil, "force", "thing", ""},
		{"edited by hand and by something", configMap(t, "x", td, "7", nil, marks, by("kubectl"), by("thing")), nil, "force", "thing", ""},
		{"edited by istiod", configMap(t, "x", td, "7", nil, marks, by("pilot-discovery")), nil, "keep", "", `"pilot-discovery"`},
		{"edited by istiod that is off", configMap(t, "x", td, "7", nil, marks, by("pilot-discovery")), []string{"pilot-discovery"}, "force", "pilot-discovery", ""},
		{"edited by istio-csr and by hand", configMap(t, "x", td, "7", nil, marks, by("cert-manager-istio-csr"), by("kubectl-edit")), nil, "keep", "", `"cert-manager-istio-csr"`},
		{"istiod's", configMap(t, "x", "", "", nil, by("pilot-discovery")), nil, "keep", "", `"pilot-discovery"`},
		{"istiod's, taken over", configMap(t, "x", "", "", nil, by("pilot-discovery")), []string{"pilot-discovery"}, "force", "pilot-discovery", ""},
		{"of two, one taken over", configMap(t, "x", "", "", nil, by("pilot-discovery"), by("zeus")), []string{"pilot-discovery"}, "keep", "", `"zeus"`},
		{"made by hand", configMap(t, "x", "", "", nil, by("kubectl-create")), nil, "keep", "", `"kubectl-create"`},
		{"with our mark, and not ours", configMap(t, "x", td, "7", nil, held("kubectl-create", "Update", true, true)), nil, "keep", "", `"kubectl-create"`},
		{"of nobody", configMap(t, "x", "", "", nil), nil, "keep", "", "held by nobody"},
		{"another's without the key", configMap(t, "", "", "", nil, held("thing", "Update", false, false)), nil, "apply", "", ""},
		{"another Hallmark's", configMap(t, "x", "elsewhere", "3", nil, ours), nil, "keep", "", "trust domain elsewhere"},
		{"immutable", configMap(t, "old", td, "6", map[string]any{"immutable": true}, ours), nil, "keep", "", "immutable"},
		{"immutable and right", configMap(t, "new", td, "7", map[string]any{"immutable": true}, ours), nil, "keep", "", ""},
		{"a manager that would break a line", configMap(t, "x", "", "", nil, by("a\nb")), nil, "keep", "", `a\\nb`},
	} {
		o, err := kube.Seen(tc.raw)
		if err != nil {
			t.Fatal(err)
		}
		move, from, problem := kube.Decide(o, kube.Wanted(td, 7, "new"), tc.takeOver)
		if move != tc.move || from != tc.from || tc.problem == "" && problem != "" || !strings.Contains(problem, tc.problem) {
			t.Errorf("%s: %s from %q with %q; want %s from %q with %q", tc.name, move, from, problem, tc.move, tc.from, tc.problem)
		}
	}
}

func TestContest(t *testing.T) {
	t.Parallel()
	now := time.Now()
	var c kube.Contest
	overrule := func(writer string, want time.Duration) {
		t.Helper()
		if got := c.Overrule(writer, now); got != want {
			t.Fatalf("%s has to be waited for %v, want %v", writer, got, want)
		}
	}
	for _, quiet := range []time.Duration{10 * time.Minute, 20 * time.Minute, 40 * time.Minute, 80 * time.Minute, 2 * time.Hour, 2 * time.Hour} {
		for range 3 {
			overrule("a", 0)
			now = now.Add(time.Second)
		}
		overrule("a", quiet)
		now = now.Add(time.Minute)
		overrule("a", quiet-time.Minute)
		now = now.Add(quiet - time.Minute)
	}
	overrule("b", 0) // another begins anew
	// Now and then is no contest.
	for range 10 {
		now = now.Add(11 * time.Minute)
		overrule("b", 0)
	}
	// Long ago is forgotten.
	for range 2 {
		overrule("b", 0)
	}
	overrule("b", 10*time.Minute)
	now = now.Add(5 * time.Hour)
	for range 3 {
		overrule("b", 0)
	}
	overrule("b", 10*time.Minute)
}

// FuzzSeen takes objects as anybody may have written them.
func FuzzSeen(f *testing.F) {
	ours := held("hallmark", "Apply", true, true)
	f.Add(configMap(f, "x", "cluster.local", "7", nil, ours, held("kubectl-edit", "Update", true, false)))
	f.Add(`{"metadata":{"managedFields":[1,{"manager":2},{"manager":"a","fieldsV1":[]},{"manager":"b","fieldsV1":{"f:data":3}}]},"data":{"root-cert.pem":1}}`)
	f.Add(`{"metadata":{"managedFields":{"a":1},"annotations":{"hallmark.dev/bundle-sequence":"-1"}},"data":[]}`)
	f.Add(`{"metadata":"x","immutable":"yes"}`)
	f.Fuzz(func(t *testing.T, raw string) {
		o, err := kube.Seen(raw)
		if err != nil || o == nil {
			return
		}
		if len(o.Writers()) > 8 {
			t.Errorf("%d writers are kept", len(o.Writers()))
		}
		for _, w := range o.Writers() {
			if len(w) > 64+len("�") {
				t.Errorf("%d bytes of a name are kept", len(w))
			}
		}
		move, _, problem := kube.Decide(o, kube.Wanted("cluster.local", 7, "new"), nil)
		if move == "force" && problem != "" || len(problem) > 4096 {
			t.Errorf("%s with %q", move, problem)
		}
		if o.Sequence() > 7 && !strings.Contains(raw, fmt.Sprint(o.Sequence())) && !strings.Contains(raw, `\u`) {
			t.Errorf("sequence %d stands nowhere", o.Sequence())
		}
	})
}
