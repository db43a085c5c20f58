package policy_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/hallmark-ca/hallmark/signing/evidence"
	"github.com/hallmark-ca/hallmark/signing/policy"
)

func publicKey(t testing.TB) string {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKIXPublicKey(&k.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}))
}

func parse(t testing.TB, image string) policy.Image {
	t.Helper()
	img, err := policy.ParseImage(image)
	if err != nil {
		t.Fatal(err)
	}
	return img
}

// names tells whether the set speaks about image, and whether each policy that
// does can be used.
func names(t testing.TB, set *policy.Set, image string) (speaks, usable bool) {
	t.Helper()
	usable = true
	for _, p := range set.Match(parse(t, image), policy.Facts{}) {
		speaks = true
		usable = usable && p.Unusable() == ""
	}
	return speaks, usable
}

func TestCompile(t *testing.T) {
	t.Parallel()
	key := strings.ReplaceAll(publicKey(t), "\n", "\\n")
	set := compile(fmt.Sprintf(`# what kubectl get -o yaml writes
apiVersion: policy.sigstore.dev/v1alpha1
kind: ClusterImagePolicy
metadata:
  name: team-a
  uid: 5f0c
  resourceVersion: "12"
  generation: 3
  creationTimestamp: "2026-01-01T00:00:00Z"
  labels: {a: b}
  annotations: {kubectl.kubernetes.io/last-applied-configuration: "{}"}
  managedFields: []
spec:
  mode: warn
  images: [{glob: "ghcr.io/a/**"}, {glob: "quay.io/a/**"}]
  authorities:
  - key: {data: "%s", hashAlgorithm: SHA256}
    signatureFormat: bundle
    attestations: []
    source: null
  - name: anybody
    static: {action: fail, message: "ask the\nteam"}
status: {conditions: [{type: Ready}], anything: true}
`, key), "# nothing but a comment\n", document("zoo", "**"))
	if problems := set.Problems(); len(problems) > 0 {
		t.Fatal(problems)
	}
	all := set.Policies()
	if len(all) != 2 || all[0].Name() != "team-a" || !all[0].Warns() || all[1].Warns() || all[0].File() != "all.yaml" {
		t.Fatalf("%+v", all)
	}
	as := all[0].Authorities()
	if len(as) != 2 || as[0].Name() != "authority-0" || as[0].Key() == nil || as[0].Accepts(evidence.FormatLegacy) || !as[0].Accepts(evidence.FormatBundle) {
		t.Errorf("authority 0: %+v", as[0])
	}
	if as[1].Name() != "anybody" || as[1].Static() != policy.StaticFail || as[1].Message() != `ask the\nteam` || as[1].Key() != nil {
		t.Errorf("authority 1: %+v", as[1])
	}
	for image, want := range map[string]int{"ghcr.io/a/x": 2, "quay.io/a/x": 2, "ghcr.io/b/x": 1} {
		if got := len(set.Match(parse(t, image), policy.Facts{})); got != want {
			t.Errorf("%s: %d policies, want %d", image, got, want)
		}
	}
}

// Each mistake is found by its path, and its policy denies what it names.
func TestProblems(t *testing.T) {
	t.Parallel()
	key := strings.ReplaceAll(publicKey(t), "\n", "\\n")
	with := func(spec string) string {
		return "apiVersion: policy.sigstore.dev/v1beta1\nkind: ClusterImagePolicy\nmetadata: {name: p}\nspec:\n  images: [{glob: ghcr.io/org/**}]\n" + spec
	}
	one := func(authority string) string { return with("  authorities: [" + authority + "]\n") }
	for _, row := range []struct{ name, document, path string }{
		{"unknown field", one("{static: {action: pass}}") + "  modus: warn\n", "spec.modus"},
		{"unknown field, deep", one("{static: {action: pass, actions: x}}"), "spec.authorities[0].static.actions"},
		{"unknown field of another case", one("{Static: {action: pass}}"), "spec.authorities[0].Static"},
		{"unknown field of the whole", one("{static: {action: pass}}") + "extra: 1\n", "extra"},
		{"wrong kind of value", one("{static: {action: [pass]}}"), "spec.authorities.static.action"},
		{"mode", one("{static: {action: pass}}") + "  mode: audit\n", "spec.mode"},
		{"no authorities", with(""), "spec.authorities"},
		{"too many authorities", with("  authorities: [" + strings.Repeat("{static: {action: pass}},", 65) + "]\n"), "spec.authorities"},
		{"authority without a kind", one("{name: x}"), "spec.authorities[0]"},
		{"authority of two kinds", one("{static: {action: pass}, key: {data: \"" + key + "\"}}"), "spec.authorities[0]"},
		{"authority's name", one("{name: a/b, static: {action: pass}}"), "spec.authorities[0].name"},
		{"one name twice", with("  authorities: [{name: a, static: {action: pass}}, {name: a, static: {action: fail}}]\n"), "spec.authorities[1].name"},
		{"static action", one("{static: {action: maybe}}"), "spec.authorities[0].static.action"},
		{"no key", one("{key: {}}"), "spec.authorities[0].key.data"},
		{"no PEM", one("{key: {data: abc}}"), "spec.authorities[0].key"},
		{"two keys in one", one("{key: {data: \"" + key + key + "\"}}"), "spec.authorities[0].key"},
		{"hash", one("{key: {data: \"" + key + "\", hashAlgorithm: md5}}"), "spec.authorities[0].key"},
		{"signature format", one("{signatureFormat: new, static: {action: pass}}"), "spec.authorities[0].signatureFormat"},
		{"keyless", one("{keyless: {identities: [{issuer: i, subject: s}]}}"), "spec.authorities[0].keyless"},
		{"kms", one("{key: {kms: awskms:///x}}"), "spec.authorities[0].key.kms"},
		{"secretRef", one("{key: {secretRef: {name: x}}}"), "spec.authorities[0].key.secretRef"},
		{"source", one("{key: {data: \"" + key + "\"}, source: [{oci: r.example/x}]}"), "spec.authorities[0].source"},
		{"ctlog", one("{key: {data: \"" + key + "\"}, ctlog: {}}"), "spec.authorities[0].ctlog"},
		{"rfc3161timestamp", one("{key: {data: \"" + key + "\"}, rfc3161timestamp: {trustRootRef: x}}"), "spec.authorities[0].rfc3161timestamp"},
		{"attestations", one("{key: {data: \"" + key + "\"}, attestations: [{name: x, predicateType: spdx}]}"), "spec.authorities[0].attestations"},
		{"policy", one("{static: {action: pass}}") + "  policy: {type: cue, data: x}\n", "spec.policy"},
		{"namespaceSelector", one("{static: {action: pass}}") + "  match: [{version: v1, resource: pods, namespaceSelector: {}}]\n", "spec.match[0].namespaceSelector"},
		{"match without a resource", one("{static: {action: pass}}") + "  match: [{version: v1}]\n", "spec.match[0].resource"},
		{"match of an unknown resource", one("{static: {action: pass}}") + "  match: [{version: v1, resource: secrets}]\n", "spec.match[0].resource"},
		{"match of the wrong group", one("{static: {action: pass}}") + "  match: [{version: v1, resource: deployments}]\n", "spec.match[0].group"},
		{"match of no version", one("{static: {action: pass}}") + "  match: [{version: v2, resource: pods}]\n", "spec.match[0].version"},
		{"selector's operator", one("{static: {action: pass}}") + "  match: [{version: v1, resource: pods, selector: {matchExpressions: [{key: a, operator: Is}]}}]\n", "spec.match[0].selector.matchExpressions[0].operator"},
		{"selector's values", one("{static: {action: pass}}") + "  match: [{version: v1, resource: pods, selector: {matchExpressions: [{key: a, operator: In}]}}]\n", "spec.match[0].selector.matchExpressions[0].values"},
		{"selector's label", one("{static: {action: pass}}") + "  match: [{version: v1, resource: pods, selector: {matchLabels: {'a b': c}}}]\n", "spec.match[0].selector.matchLabels"},
		{"apiVersion", strings.Replace(one("{static: {action: pass}}"), "v1beta1", "v1", 1), "apiVersion"},
		{"name", strings.Replace(one("{static: {action: pass}}"), "name: p", "name: P_", 1), "metadata.name"},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			set := compile(row.document, document("lax", "**"))
			var paths []string
			for _, p := range set.Problems() {
				if !p.Warning {
					paths = append(paths, p.Path)
				}
				if p.File != "all.yaml" || p.Text == "" || p.Mend == "" {
					t.Errorf("incomplete: %+v", p)
				}
			}
			if len(paths) == 0 || paths[0] != row.path && (len(paths) < 2 || paths[1] != row.path) {
				t.Errorf("problems at %q, want %s", paths, row.path)
			}
			if speaks, usable := names(t, set, "ghcr.io/org/app@"+zeros); !speaks || usable {
				t.Error("the image that it names is not denied")
			}
			if _, usable := names(t, set, "ghcr.io/other/app@"+zeros); !usable {
				t.Error("an image that it does not name is denied")
			}
		})
	}
}

// Where it cannot be read what a policy names, it names everything.
func TestUnreadable(t *testing.T) {
	t.Parallel()
	static := "  authorities: [{static: {action: pass}}]\n"
	head := "apiVersion: policy.sigstore.dev/v1beta1\nkind: ClusterImagePolicy\nmetadata: {name: p}\nspec:\n"
	deep := strings.Repeat("[", 40) + strings.Repeat("]", 40)
	for name, text := range map[string]string{
		"no YAML":           "{",
		"tabs":              "a:\n\tb",
		"a text":            "hello\n",
		"a list":            "- a\n- b\n",
		"no kind":           "apiVersion: policy.sigstore.dev/v1beta1\nspec: {}\n",
		"misspelt kind":     strings.Replace(document("p", "x/**"), "ClusterImagePolicy", "ClusterImagePolcy", 1),
		"another kind":      "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: p}\n",
		"no images":         head + static,
		"misspelt images":   head + "  image: [{glob: x/**}]\n" + static,
		"empty images":      head + "  images: []\n" + static,
		"images of a kind":  head + "  images: ghcr.io/**\n" + static,
		"glob of a kind":    head + "  images: [{glob: 5}]\n" + static,
		"glob missing":      head + "  images: [{}]\n" + static,
		"glob with regexp":  document("p", "ghcr.io/(a|b)/**"),
		"glob with a blank": document("p", "ghcr.io/a/** "),
		"glob too long":     document("p", strings.Repeat("a", 513)),
		"one bad of two":    document("p", "ghcr.io/a/**", "^x"),
		"too many globs":    document("p", strings.Split(strings.Repeat("a ", 256)+"a", " ")...),
		"key twice":         head + "  mode: warn\n  mode: enforce\n  images: [{glob: x/**}]\n" + static,
		"alias":             head + "  images: &a [{glob: x/**}]\n  match: *a\n" + static,
		"deep":              head + "  images: " + deep + "\n" + static,
		"second document":   document("p", "x/**") + "---\n{\n",
		"NUL":               "a: b\x00\n",
		"not UTF-8":         "a: \xff\xfe\n",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			set := compile(text)
			speaks, usable := names(t, set, "quay.io/any/thing:v1")
			if !speaks || usable {
				t.Errorf("an image is not denied: %v", set.Problems())
			}
			if len(set.Problems()) == 0 {
				t.Error("no problem is listed")
			}
		})
	}
}

// A trust root names no image: it is listed, and denies nothing by itself.
func TestTrustRoot(t *testing.T) {
	t.Parallel()
	root := "apiVersion: policy.sigstore.dev/v1alpha1\nkind: TrustRoot\nmetadata: {name: own}\nspec: {sigstoreKeys: {certificateAuthorities: []}}\n"
	set := compile(root, document("p", "**"))
	if problems := set.Problems(); len(problems) != 1 || !problems[0].Warning || problems[0].Policy != "own" {
		t.Errorf("%v", problems)
	}
	if speaks, usable := names(t, set, "ghcr.io/a/b"); !speaks || !usable || len(set.Policies()) != 1 {
		t.Error("the policy beside it does not count")
	}
}

func TestBounds(t *testing.T) {
	t.Parallel()
	file := func(name, text string) policy.File { return policy.File{Name: name, Data: []byte(text)} }
	many := make([]policy.File, policy.MaxFiles+1)
	for i := range many {
		many[i] = file(fmt.Sprintf("%d.yaml", i), document(fmt.Sprintf("p%d", i), "x/**"))
	}
	var documents []string
	for i := range policy.MaxPolicies + 1 {
		documents = append(documents, document(fmt.Sprintf("p%d", i), "x/**"))
	}
	for name, files := range map[string][]policy.File{
		"too many files":    many,
		"too large a file":  {file("a.yaml", "# "+strings.Repeat("x", policy.MaxFile))},
		"too many policies": {file("a.yaml", strings.Join(documents, "---\n"))},
		"an unreadable one": {{Name: "a.yaml", Err: errors.New("permission denied")}, file("b.yaml", document("lax", "**"))},
	} {
		set := policy.Compile(files)
		if speaks, usable := names(t, set, "quay.io/any/thing:v1"); !speaks || usable {
			t.Errorf("%s: an image is not denied", name)
		}
	}
	if set := policy.Compile(nil); len(set.Match(parse(t, "x"), policy.Facts{})) != 0 || len(set.Problems()) != 0 {
		t.Error("no files are not no policies")
	}
}

// Of two policies of one name, the records could not tell which passed.
func TestSameName(t *testing.T) {
	t.Parallel()
	set := policy.Compile([]policy.File{{Name: "b.yaml", Data: []byte(document("p", "b/**"))}, {Name: "a.yaml", Data: []byte(document("p", "a/**"))}})
	if _, usable := names(t, set, "a/x"); !usable {
		t.Error("the first in the order of files is denied")
	}
	if speaks, usable := names(t, set, "b/x"); !speaks || usable {
		t.Error("the second is not denied")
	}
}

// A warning-only policy that cannot be used still only warns; one whose mode
// cannot be read does not.
func TestUnusableWarns(t *testing.T) {
	t.Parallel()
	for mode, want := range map[string]bool{"warn": true, "enforce": false, "wran": false, "[warn]": false} {
		p := compile(document("p", "x/**") + "  mode: " + mode + "\n  policy: {type: cue}\n").Policies()[0]
		if p.Unusable() == "" || p.Warns() != want {
			t.Errorf("mode %s: unusable %q, warns %t", mode, p.Unusable(), p.Warns())
		}
	}
}

func TestSelector(t *testing.T) {
	t.Parallel()
	match := func(entries string) string { return document("p", "**") + "  match: [" + entries + "]\n" }
	web := map[string]string{"app": "web", "tier": "front"}
	for _, row := range []struct {
		entries string
		labels  map[string]string
		want    bool
	}{
		{"{version: v1, resource: pods}", nil, true},
		{"{group: apps, version: v1, resource: deployments}", nil, true},
		{"{group: apps, version: '*', resource: statefulsets}", nil, true},
		{"{group: batch, version: v1, resource: cronjobs, selector: {matchLabels: {app: web}}}", web, true},
		{"{version: v1, resource: pods, selector: {}}", nil, true},
		{"{version: v1, resource: pods, selector: {matchLabels: {app: web}}}", nil, false},
		{"{version: v1, resource: pods, selector: {matchLabels: {app: web, tier: back}}}", web, false},
		{"{version: v1, resource: pods, selector: {matchLabels: {app: db}}}, {version: v1, resource: pods, selector: {matchLabels: {app: web}}}", web, true},
		{"{version: v1, resource: pods, selector: {matchExpressions: [{key: app, operator: In, values: [a, web]}]}}", web, true},
		{"{version: v1, resource: pods, selector: {matchExpressions: [{key: app, operator: In, values: [a]}]}}", web, false},
		{"{version: v1, resource: pods, selector: {matchExpressions: [{key: app, operator: NotIn, values: [a]}]}}", web, true},
		{"{version: v1, resource: pods, selector: {matchExpressions: [{key: zone, operator: NotIn, values: [a]}]}}", web, true},
		{"{version: v1, resource: pods, selector: {matchExpressions: [{key: app, operator: NotIn, values: [web]}]}}", web, false},
		{"{version: v1, resource: pods, selector: {matchExpressions: [{key: app, operator: Exists}]}}", web, true},
		{"{version: v1, resource: pods, selector: {matchExpressions: [{key: zone, operator: Exists}]}}", web, false},
		{"{version: v1, resource: pods, selector: {matchExpressions: [{key: zone, operator: DoesNotExist}]}}", web, true},
		{"{version: v1, resource: pods, selector: {matchExpressions: [{key: app, operator: DoesNotExist}]}}", web, false},
	} {
		set := compile(match(row.entries))
		if why := set.Policies()[0].Unusable(); why != "" {
			t.Errorf("%s: %s", row.entries, why)
			continue
		}
		if got := len(set.Match(parse(t, "x"), policy.Facts{Labels: row.labels})) == 1; got != row.want {
			t.Errorf("%s on %v: %t, want %t", row.entries, row.labels, got, row.want)
		}
	}
}

// The hash of the policies that match changes with all that they say, and with
// nothing else.
func TestHash(t *testing.T) {
	t.Parallel()
	hash := func(documents ...string) policy.Hash {
		_, h := compile(documents...).Naming(parse(t, "ghcr.io/a/x")).For(policy.Facts{})
		return h
	}
	base := document("p", "ghcr.io/**")
	same := []string{
		strings.Replace(base, "metadata: {name: p}", "metadata: {labels: {x: y}, name: p}", 1),
		"# a comment\n" + base,
		base + "status: {ready: true}\n",
		base + "---\n" + document("elsewhere", "quay.io/**"),
	}
	other := []string{
		document("q", "ghcr.io/**"),
		document("p", "ghcr.io/a/**"),
		base + "  mode: warn\n",
		strings.Replace(base, "pass", "fail", 1),
		base + "  unknown: 1\n",
		base + "---\n" + document("more", "ghcr.io/**"),
	}
	for _, d := range same {
		if hash(d) != hash(base) {
			t.Errorf("the hash changed with\n%s", d)
		}
	}
	seen := map[policy.Hash]string{hash(base): base}
	for _, d := range other {
		if twin, ok := seen[hash(d)]; ok {
			t.Errorf("one hash for\n%s\nand\n%s", d, twin)
		}
		seen[hash(d)] = d
	}
}

// Order of files and documents does not matter.
func TestOrder(t *testing.T) {
	t.Parallel()
	a, b := policy.File{Name: "a.yaml", Data: []byte(document("z", "**") + "---\n" + document("y", "**"))}, policy.File{Name: "b.yaml", Data: []byte(document("x", "**"))}
	if diff := cmp.Diff(policy.Compile([]policy.File{a, b}).Hash(), policy.Compile([]policy.File{b, a}).Hash()); diff != "" {
		t.Error(diff)
	}
}

// FuzzPolicy: whatever the bytes, nothing vanishes. Either every document is a
// policy, or everything is denied.
func FuzzPolicy(f *testing.F) {
	f.Add([]byte(document("p", "ghcr.io/**")))
	f.Add([]byte(document("p", "ghcr.io/**") + "---\n" + document("q", "**") + "  mode: warn\n"))
	f.Add([]byte("apiVersion: policy.sigstore.dev/v1beta1\nkind: ClusterImagePolicy\nmetadata: {name: p}\nspec: {images: [{glob: 5}], authorities: [{key: {data: x}}]}\n"))
	f.Add([]byte("{"))
	f.Add([]byte("---\n---\n# x\n"))
	f.Add([]byte("a: &a [1]\nb: *a\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		set := policy.Compile([]policy.File{{Name: "f.yaml", Data: data}})
		all := set.Policies()
		unusable := 0
		for _, p := range all {
			if p.Unusable() != "" {
				unusable++
				continue
			}
			if p.Name() == "" || len(p.Authorities()) == 0 {
				t.Fatalf("a usable policy of nothing: %q", data)
			}
			for _, a := range p.Authorities() {
				if (a.Key() == nil) == (a.Static() == policy.StaticNone) {
					t.Fatalf("a usable authority of nothing: %q", data)
				}
			}
		}
		wrong := 0
		for _, p := range set.Problems() {
			if !p.Warning {
				wrong++
			}
		}
		if (wrong > 0) != (unusable > 0) {
			t.Fatalf("%d problems, %d unusable policies: %q", wrong, unusable, data)
		}
		if set.Hash() != policy.Compile([]policy.File{{Name: "f.yaml", Data: data}}).Hash() {
			t.Fatalf("read twice, two sets: %q", data)
		}
	})
}
