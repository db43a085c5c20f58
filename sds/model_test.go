package sds_test

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"testing"
	"testing/synctest"
	"time"

	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"

	"github.com/hallmark-ca/hallmark/attest"
	"github.com/hallmark-ca/hallmark/sds"
	"github.com/hallmark-ca/hallmark/sds/sdstest"
)

// modelSeed names a variable that runs the model check with one seed alone.
const modelSeed = "HALLMARK_MODEL_SEED"

// TestModel plays random interleavings of everything that can happen to a few
// streams. What must hold of each response, [sdstest.Stream] checks when it
// comes; in the end each stream has ended, or has the newest of what it asks
// for.
func TestModel(t *testing.T) {
	t.Parallel()
	first, count := uint64(1), uint64(150)
	if text := os.Getenv(modelSeed); text != "" {
		seed, err := strconv.ParseUint(text, 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		first, count = seed, 1
	} else if testing.Short() {
		count = 20
	}
	for seed := first; seed < first+count; seed++ {
		synctest.Test(t, func(t *testing.T) {
			m := &model{rand: rand.New(rand.NewPCG(seed, 0)), mint: newMint(t)}
			m.source = newSource(m.mint.identity)
			m.server, _, _ = newServer(t, m.source, nil)
			m.play(t)
			if t.Failed() {
				for _, step := range m.steps {
					t.Log(step)
				}
				t.Fatalf("%s=%d go test -run TestModel ./sds plays this again", modelSeed, seed)
			}
		})
		if t.Failed() {
			return
		}
	}
}

type model struct {
	rand    *rand.Rand
	mint    *mint
	source  *source
	server  *sds.Server
	streams [3]*sdstest.Stream
	steps   []string
}

func (m *model) log(format string, args ...any) {
	m.steps = append(m.steps, fmt.Sprintf(format, args...))
}

func (m *model) play(t *testing.T) {
	for range 80 {
		m.step(t)
		// Half of the steps meet a server that has done with the last.
		if m.rand.IntN(2) == 0 {
			synctest.Wait()
		}
		if t.Failed() {
			break
		}
	}
	m.settle(t)
	for _, c := range m.streams {
		if c != nil {
			c.Cancel()
			<-c.Done()
		}
	}
}

// step does one thing to the source or to one stream.
func (m *model) step(t *testing.T) {
	i := m.rand.IntN(len(m.streams))
	c := m.streams[i]
	if c == nil || c.Ended() {
		m.log("open %d", i)
		c = sdstest.Open(t, m.server, "good", time.Now)
		m.streams[i] = c
		synctest.Wait()
		m.log("first %d", i)
		c.First(nil, m.names()...)
		return
	}
	switch op := m.rand.IntN(20); op {
	case 0, 1, 2:
		m.log("renew")
		v := m.mint.svid()
		m.source.set(func(s *source) { s.svid = v })
	case 3, 4:
		m.log("rotate")
		m.mint.AddRoot(t)
		b := m.mint.bundle()
		m.source.set(func(s *source) { s.bundle = b })
	case 5:
		m.log("refuse")
		m.source.end(attest.Deny(attest.ImageUnsigned, "", ""))
		m.source.set(func(s *source) { s.svid = nil })
	case 6:
		d := time.Duration(m.rand.IntN(5)+1) * time.Second
		m.log("pass %s", d)
		pass(d)
	case 7:
		d := time.Duration(m.rand.IntN(7)+1) * time.Hour
		m.log("pass %s", d)
		pass(d)
	case 8:
		m.log("tokens end in 2 h")
		m.source.set(func(s *source) { s.expires = time.Now().Add(2 * time.Hour) })
	case 9:
		m.log("leave %d", i)
		c.CloseSend()
	case 10:
		m.log("lose %d", i)
		c.Cancel()
	case 11, 12:
		synctest.Wait()
		m.log("nack %d", i)
		c.Nack()
	case 13:
		synctest.Wait()
		names := m.names()
		m.log("nack %d with %v", i, names)
		c.Refuse(names...)
	case 14, 15:
		synctest.Wait()
		names := m.names()
		m.log("ask %d for %v", i, names)
		c.Ask(names...)
	default:
		synctest.Wait()
		m.log("ack %d", i)
		c.Ack()
	}
}

func (m *model) names() []string {
	var names []string
	for _, name := range []string{"default", "ROOTCA", "spiffe://cluster.local", m.mint.identity.String(), "unknown"} {
		if m.rand.IntN(3) == 0 {
			names = append(names, name)
		}
	}
	return names
}

// settle has every client accept all that comes, and holds what they have
// against what there is.
func (m *model) settle(t *testing.T) {
	for _, c := range m.streams {
		for synctest.Wait(); c != nil && !c.Ended() && c.Waiting(); synctest.Wait() {
			c.Ack()
		}
	}
	m.source.mu.Lock()
	defer m.source.mu.Unlock()
	for i, c := range m.streams {
		if c == nil || c.Ended() {
			continue
		}
		have := c.Have()
		for _, name := range c.Names() {
			want := ""
			switch name {
			case "ROOTCA", "spiffe://cluster.local":
				if m.source.bundle != nil {
					want = m.source.bundle.Version()
				}
			case "default", m.mint.identity.String():
				if v := m.source.svid; v != nil && time.Now().Before(v.Ends()) {
					want = v.Version()
				}
			}
			if want == "" || c.Refused(name) {
				continue
			}
			if got := version(have[name]); got != want {
				t.Errorf("stream %d has version %q of %q, want %q", i, got, name, want)
			}
		}
	}
}

// version is what the version of a secret should be.
func version(secret *tlsv3.Secret) string {
	text := secret.GetTlsCertificate().GetCertificateChain().GetInlineBytes()
	if validator := secret.GetValidationContext().GetCustomValidatorConfig(); validator != nil {
		config := &tlsv3.SPIFFECertValidatorConfig{}
		if err := validator.GetTypedConfig().UnmarshalTo(config); err != nil {
			return err.Error()
		}
		text = config.GetTrustDomains()[0].GetTrustBundle().GetInlineBytes()
	}
	h := sha256.New()
	for {
		block, rest := pem.Decode(text)
		if block == nil {
			return hex.EncodeToString(h.Sum(nil)[:8])
		}
		h.Write(block.Bytes)
		text = rest
	}
}
