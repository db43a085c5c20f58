package keys

import (
	"context"
	"crypto"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"time"

	"go.step.sm/crypto/kms/apiv1"
)

// maxHung bounds the calls to one device that were given up and have not come
// back. Each holds a thread of the process.
const maxHung = 4

// errSlow ends a call that took too long.
var errSlow = errors.New("it did not answer in time")

// device is a PKCS #11 module, or another place outside of this process that
// keys are used in. It is used by one call at a time: a root signs a few times a
// day, and no two modules agree on what several threads may do.
type device struct {
	name    string
	dial    func(context.Context, address) (apiv1.KeyManager, error)
	metrics *metrics
	log     *slog.Logger

	turn chan struct{} // holds one: whose turn it is. It guards conn.
	conn connection    // nil: nothing is open

	mu   sync.Mutex // guards hung, and how a call ends
	hung int
}

// connection is everything that is open at a device, by [address.at]. The
// library shares what lies below it, so that all of it is opened, and given up,
// together.
type connection map[string]*session

// session is one token that was logged in to.
type session struct {
	manager apiv1.KeyManager
	signers map[string]crypto.Signer // of keys that were found, by their URI
}

// job is what is done in a call.
type job struct {
	f func(context.Context, *session) error
	// late, where set, takes back what f has done after nobody waited for it any
	// more.
	late func(*session)
}

// call has j done on a session. It returns when that is done, after limit, or
// with ctx, whatever the device does.
func (d *device) call(ctx context.Context, limit time.Duration, at address, j job) error {
	ctx, cancel := context.WithTimeoutCause(ctx, limit, errSlow)
	defer cancel()
	select {
	case d.turn <- struct{}{}:
	case <-ctx.Done():
		return fmt.Errorf("waiting for another call to %s: %w", d.name, context.Cause(ctx))
	}
	d.mu.Lock()
	hung := d.hung
	d.mu.Unlock()
	if hung >= maxHung {
		<-d.turn
		return fmt.Errorf("%d calls to %s have not come back, and no other one is begun until one does: mend it, or restart this process", hung, d.name)
	}
	w := &work{device: d, at: at, job: j, conn: d.conn, done: make(chan error, 1)}
	d.conn = nil // it is the work's
	go w.run(ctx)
	select {
	case err := <-w.done:
		return d.finish(w, err)
	case <-ctx.Done():
	}
	if !w.abandon() { // it has come back meanwhile
		return d.finish(w, <-w.done)
	}
	d.metrics.count("abandoned")
	d.log.Error("a call to a key device was given up", "device", d.name, "error", context.Cause(ctx))
	<-d.turn
	return fmt.Errorf("calling %s: %w", d.name, context.Cause(ctx))
}

func (d *device) finish(w *work, err error) error {
	d.conn = w.conn
	<-d.turn
	if err != nil {
		d.metrics.count("failed")
		return err
	}
	d.metrics.count("done")
	return nil
}

// close lets go of what is open, or gives it up after limit.
func (d *device) close(limit time.Duration) error {
	ctx, cancel := context.WithTimeoutCause(context.Background(), limit, errSlow)
	defer cancel()
	closed := make(chan error, 1)
	select {
	case d.turn <- struct{}{}:
	case <-ctx.Done():
		return fmt.Errorf("closing %s: %w", d.name, context.Cause(ctx))
	}
	conn := d.conn
	d.conn = nil
	<-d.turn
	go func() { closed <- conn.close() }()
	select {
	case err := <-closed:
		return err
	case <-ctx.Done():
		return fmt.Errorf("closing %s: %w", d.name, context.Cause(ctx))
	}
}

// work is one call under way, in a goroutine of its own: a call into a C library
// cannot be ended from outside.
type work struct {
	device *device
	at     address
	job    job
	conn   connection
	done   chan error

	finished, abandoned bool // guarded by device.mu
}

// abandon tells the work that nobody waits for it, unless it has finished.
func (w *work) abandon() bool {
	w.device.mu.Lock()
	defer w.device.mu.Unlock()
	if w.finished {
		return false
	}
	w.abandoned = true
	w.device.hung++
	return true
}

func (w *work) run(ctx context.Context) {
	err := guard(func() error { return w.try(ctx) })
	w.device.mu.Lock()
	w.finished = true
	late := w.abandoned
	w.device.mu.Unlock()
	if !late {
		w.done <- err
		return
	}
	// What comes back late is taken back, and its connection closed: a new one is
	// in use by now. It counts as hung until then.
	if s := w.conn[w.at.token()]; err == nil && w.job.late != nil && s != nil {
		// Only a panic is kept from the process here: nobody waits for it any more.
		_ = guard(func() error { w.job.late(s); return nil })
	}
	_ = w.conn.close() // given up, whatever it says
	w.device.mu.Lock()
	w.device.hung--
	w.device.mu.Unlock()
}

// try does the job. Which errors mean that a session is dead (the token was
// pulled out, a daemon restarted, somebody else ended it) differs from module to
// module, and the library would go on using it: whatever fails on a connection
// that was there before is tried once more on a new one, opened from the ground
// up.
func (w *work) try(ctx context.Context) error {
	old := len(w.conn) > 0
	err := w.once(ctx)
	if err == nil {
		return nil
	}
	if lost := w.drop(); lost != nil {
		w.device.log.Debug("closing a key device failed", "device", w.device.name, "error", lost)
	}
	if !old || ctx.Err() != nil {
		return err
	}
	w.device.log.Warn("a key device failed; it is opened anew", "device", w.device.name, "error", err)
	w.device.metrics.reopen()
	if err = w.once(ctx); err != nil {
		_ = w.drop() // err is what counts
	}
	return err
}

func (w *work) drop() error {
	conn := w.conn
	w.conn = nil
	return conn.close()
}

func (w *work) once(ctx context.Context) error {
	s := w.conn[w.at.token()]
	if s == nil {
		manager, err := w.device.dial(ctx, w.at)
		if err != nil {
			return err
		}
		s = &session{manager: manager, signers: map[string]crypto.Signer{}}
		if w.conn == nil {
			w.conn = connection{}
		}
		w.conn[w.at.token()] = s
	}
	return w.job.f(ctx, s)
}

func (c connection) close() error {
	var err error
	for _, s := range c {
		err = errors.Join(err, guard(s.manager.Close))
	}
	return err
}

// guard turns a panic into an error. The library panics where it loses count of
// its sessions, and issuance does not end for that.
func guard(f func() error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("the library of the device failed: %v", p)
		}
	}()
	return f()
}

// signer signs with a key that lives in a device. It holds no session: each call
// takes the one that is open then.
type signer struct {
	ctx    context.Context // crypto.Signer has no place for it
	store  *Store
	at     address
	public crypto.PublicKey
}

// Public returns the key of the certificate that it was opened for.
func (s *signer) Public() crypto.PublicKey { return s.public }

// Sign signs digest. The device picks its own random numbers.
func (s *signer) Sign(_ io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	var signature []byte
	err := s.do(func(key crypto.Signer) error {
		made, err := key.Sign(nil, digest, opts)
		if err == nil {
			err = verify(s.public, digest, made, opts)
		}
		if err == nil {
			signature = made
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("signing with key %s: %w", s.at, err)
	}
	return signature, nil
}

// do runs f on the key, in the session that is open or in a new one.
func (s *signer) do(f func(crypto.Signer) error) error {
	return s.store.device(s.at).call(s.ctx, s.store.cfg.Timeout, s.at, job{f: func(_ context.Context, on *session) error {
		key, err := on.find(s.at, s.public)
		if err != nil {
			return err
		}
		return f(key)
	}})
}

// find returns the key at that address, which must be public's.
func (s *session) find(at address, public crypto.PublicKey) (crypto.Signer, error) {
	name := at.object()
	if key := s.signers[name]; key != nil && same(public, key.Public()) {
		return key, nil
	}
	key, err := s.manager.CreateSigner(&apiv1.CreateSignerRequest{SigningKey: name})
	if err != nil {
		return nil, err
	}
	if !same(public, key.Public()) {
		return nil, errOther
	}
	s.signers[name] = key
	return key, nil
}

// errOther says that another key lies under a key's name.
var errOther = errors.New("it is not the key of the certificate")
