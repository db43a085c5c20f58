package keys

import (
	"bytes"
	"context"
	"crypto"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net/url"
	"os"
	"sync"
	"time"

	"go.step.sm/crypto/kms/apiv1"
	"go.step.sm/crypto/kms/uri"

	"github.com/hallmark-ca/hallmark/ca/profile"
)

// maxPIN bounds a PIN, in bytes.
const maxPIN = 255

// device returns where at is used: its module, or the service of another kind.
func (s *Store) device(at address) *device {
	name := string(at.kind)
	if at.kind == apiv1.PKCS11 {
		name = "PKCS #11 module " + at.words["module-path"]
	}
	key := name
	if at.kind != apiv1.PKCS11 {
		key = at.raw
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	d := s.devices[key]
	if d == nil {
		pins := &pins{refused: map[string]pin{}}
		d = &device{name: name, dial: pins.dial, metrics: s.metrics, log: s.cfg.Log, turn: make(chan struct{}, 1)}
		s.devices[key] = d
	}
	return d
}

// token names the token of a key as the library takes it: without a PIN.
func (a address) token() string {
	if a.kind != apiv1.PKCS11 {
		return a.raw
	}
	// One session to log in with, one to work with.
	values := url.Values{"module-path": {a.words["module-path"]}, "max-sessions": {"2"}}
	for _, name := range []string{"token", "serial"} {
		if value := a.words[name]; value != "" {
			values.Set(name, value)
		}
	}
	return uri.New(string(apiv1.PKCS11), values).String()
}

// object names a key in its token, likewise.
func (a address) object() string {
	if a.kind != apiv1.PKCS11 {
		return a.raw
	}
	values := url.Values{}
	for _, name := range []string{"id", "object"} {
		if value := a.words[name]; value != "" {
			values.Set(name, value)
		}
	}
	return uri.New(string(apiv1.PKCS11), values).String()
}

// pins logs in. It remembers which PINs were refused: a token locks itself after
// a few of them, and whoever tries again and again would see to that.
type pins struct {
	mu      sync.Mutex     // guards refused
	refused map[string]pin // by token
}

// pin is what a PIN file held, and when it was written.
type pin struct {
	sum  [sha256.Size]byte
	made time.Time
}

// dial opens a token, or another kind of key manager.
func (p *pins) dial(ctx context.Context, at address) (apiv1.KeyManager, error) {
	open, ok := apiv1.LoadKeyManagerNewFunc(at.kind)
	if !ok {
		return nil, linked(at.kind)
	}
	options := apiv1.Options{Type: at.kind, URI: at.token()}
	if at.kind != apiv1.PKCS11 {
		return open(ctx, options)
	}
	file := at.words["pin-source"]
	text, entry, err := readPIN(file)
	if err != nil {
		return nil, err
	}
	p.mu.Lock()
	before, tried := p.refused[at.token()]
	p.mu.Unlock()
	if tried && before.sum == entry.sum && before.made.Equal(entry.made) {
		return nil, fmt.Errorf("the token refused the PIN in %s, and is not asked again before that file is written anew: tokens lock themselves after a few wrong PINs", file)
	}
	options.Pin = string(text)
	manager, err := open(ctx, options)
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case err == nil:
		delete(p.refused, at.token())
	case pinRefused(err):
		p.refused[at.token()] = entry
		err = fmt.Errorf("the token refused the PIN in %s: %w", file, err)
	}
	return manager, err
}

func readPIN(file string) ([]byte, pin, error) {
	fail := func(err error) ([]byte, pin, error) { return nil, pin{}, fmt.Errorf("reading PIN: %w", err) }
	text, err := readPrivate(file, maxPIN+1)
	if err != nil {
		return fail(err)
	}
	text = bytes.TrimSuffix(text, []byte("\n"))
	if len(text) == 0 || len(text) > maxPIN || bytes.ContainsAny(text, "\x00\r\n") {
		return fail(fmt.Errorf("%s does not hold one line of 1 to %d bytes", file, maxPIN))
	}
	info, err := os.Stat(file)
	if err != nil {
		return fail(err)
	}
	return text, pin{sha256.Sum256(text), info.ModTime()}, nil
}

// makeInToken makes a key in the token of [Config.URI], which never leaves it.
// Its id and label are random, so that any number of roots, of any number of
// meshes, can live in one token.
func (s *Store) makeInToken(ctx context.Context) (address, *signer, error) {
	var at address
	var public crypto.PublicKey
	err := s.device(s.home).call(ctx, slowMake*s.cfg.Timeout, s.home, job{
		f: func(_ context.Context, on *session) error {
			// Anew in each try: what a failed one has left is not taken for ours.
			var id [16]byte
			rand.Read(id[:])
			at = s.home.key(id)
			made, err := on.manager.CreateKey(s.cfg.Algorithm.request(at.object()))
			if err != nil {
				return err
			}
			public = made.PublicKey
			_, err = profile.AlgorithmFor(public)
			return err
		},
		late: func(on *session) { _ = on.destroy(at, public) },
	})
	if err != nil {
		return address{}, nil, err
	}
	return at, &signer{ctx: ctx, store: s, at: at, public: public}, nil
}

// key returns the address of a key in the token.
func (a address) key(id [16]byte) address {
	words := map[string]string{"id": string(id[:]), "object": "hallmark-root-" + hex.EncodeToString(id[:])}
	for name, value := range a.words {
		words[name] = value
	}
	return address{kind: a.kind, words: words}
}

func (s *Store) destroyInToken(ctx context.Context, at address, public crypto.PublicKey) error {
	return s.device(at).call(ctx, s.cfg.Timeout, at, job{f: func(_ context.Context, on *session) error { return on.destroy(at, public) }})
}

// maxSameName bounds the keys under one name that are destroyed in one go.
const maxSameName = 8

// destroy destroys the key at that address, if it is public's, and looks that it
// is gone.
func (s *session) destroy(at address, public crypto.PublicKey) error {
	name := at.object()
	delete(s.signers, name)
	for range maxSameName {
		found, err := s.manager.GetPublicKey(&apiv1.GetPublicKeyRequest{Name: name})
		switch {
		case errors.Is(err, apiv1.NotFoundError{}):
			return nil
		case err != nil:
			return err
		case !same(public, found):
			return errOther
		}
		switch m := s.manager.(type) {
		case interface{ DeleteKey(string) error }: // the PKCS #11 library's
			err = m.DeleteKey(name)
		case apiv1.KeyDeleter:
			err = m.DeleteKey(&apiv1.DeleteKeyRequest{Name: name})
		default:
			return fmt.Errorf("a key manager of kind %s destroys no keys: destroy it by its own means", at.kind)
		}
		if err != nil {
			return err
		}
	}
	return fmt.Errorf("%d keys were destroyed, and there is still one of the same name", maxSameName)
}
