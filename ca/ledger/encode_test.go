package ledger_test

import (
	"encoding/json"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/hallmark-ca/hallmark/ca/durable/faultfs"
	"github.com/hallmark-ca/hallmark/ca/ledger"
)

// Intents and outcomes are encoded by hand: exactly as the library would.
func TestEncodingIsTheLibrarys(t *testing.T) {
	nasty := []string{"", "plain", `quote " and \ backslash`, "<html> & more", "line\nfeed\ttab\x00nul\x1f", "umlaut ä, 𝄞, \u2028\u2029", "broken \xff\xfe utf-8", "\x7f"}
	at := time.Date(2026, 7, 1, 12, 0, 0, 120_000_000, time.UTC)
	for n, s := range nasty {
		other := nasty[(n+1)%len(nasty)]
		intent := ledger.Intent{
			ID: s, Time: at, Serial: other, Identity: s, Cluster: s, Namespace: other, Pod: s, PodUID: s, Node: other, Door: s,
			Method: s, Authority: s, Root: other, NotBefore: at.Truncate(time.Second), NotAfter: at.Add(time.Hour), KeySHA256: s, TBSSHA256: s,
			Provisional: n%2 == 0,
		}
		for i := range n % 4 {
			image := ledger.Image{Container: s, Image: other, Digest: s, Verdict: s, Reason: other, Authority: s, Signer: s}
			for range i {
				image.Policies = append(image.Policies, s, other)
			}
			intent.Images = append(intent.Images, image)
		}
		same(t, &intent, ledger.EncodeIntent(t, &intent))
		outcome := ledger.Outcome{ID: s, Time: at, Serial: other, Status: s, CertSHA256: other, Detail: s}
		same(t, &outcome, ledger.EncodeOutcome(t, &outcome))
	}
	same(t, &ledger.Intent{}, ledger.EncodeIntent(t, &ledger.Intent{}))
	// Every field is written: one that is new, and forgotten in the encoder,
	// would be missing here.
	var all ledger.Intent
	fillAll(reflect.ValueOf(&all).Elem())
	same(t, &all, ledger.EncodeIntent(t, &all))
	var outcome ledger.Outcome
	fillAll(reflect.ValueOf(&outcome).Elem())
	same(t, &outcome, ledger.EncodeOutcome(t, &outcome))
}

func same(t *testing.T, v any, got []byte) {
	t.Helper()
	want, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	if string(got) != string(want) {
		t.Errorf("encoded as\n%s\nthe library has\n%s", got, want)
	}
}

// fillAll sets every field to something.
func fillAll(v reflect.Value) {
	switch v.Kind() {
	case reflect.String:
		v.SetString("x")
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Int:
		v.SetInt(7)
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 1, 1))
		fillAll(v.Index(0))
	case reflect.Struct:
		if v.Type() == reflect.TypeFor[time.Time]() {
			v.Set(reflect.ValueOf(time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC)))
			return
		}
		for i := range v.NumField() {
			fillAll(v.Field(i))
		}
	default:
		panic("a field of another kind: " + v.Kind().String())
	}
}

// What a filter looks for is found also where JSON writes it in other letters.
func TestFilterFindsEscapedText(t *testing.T) {
	fsys := faultfs.Memory()
	l, stop := start(t, config(fsys))
	i := intent(1)
	i.ID, i.Images[0].Image = `a "quoted" <id> & more`, "registry/ä&b"
	if err := l.Append(t.Context(), i); err != nil {
		t.Fatal(err)
	}
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	for _, f := range []ledger.Filter{{ID: i.ID}, {Image: "ä&b"}, {Image: "&"}, {Identity: i.Identity}} {
		if got := query(t, fsys, f); len(got) != 1 || !strings.Contains(got[0].Intent.ID, "quoted") {
			t.Errorf("filter %+v gives %d entries", f, len(got))
		}
	}
}
