package sds_test

import (
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/hallmark-ca/hallmark/attest"
	"github.com/hallmark-ca/hallmark/sds"
	"github.com/hallmark-ca/hallmark/sds/sdstest"
)

func TestSilentClient(t *testing.T) {
	play(t, nil, func(t *testing.T, s *scene) {
		c := s.open(t)
		pass(4 * time.Second)
		expect(t, c)
		if c.Ended() {
			t.Error("the stream ended early")
		}
		pass(2 * time.Second)
		expectEnd(t, c, codes.InvalidArgument, "RequestMalformed")
	})
}

// TestNothingToAnswer: a listener waits without end, so the stream must fail.
func TestNothingToAnswer(t *testing.T) {
	play(t, nil, func(t *testing.T, s *scene) {
		s.source.set(func(src *source) { src.svid, src.bundle = nil, nil })
		a, b := s.open(t), s.open(t)
		a.First(nil, "default")
		b.First(nil, "ROOTCA")
		pass(6 * time.Second)
		expectEnd(t, a, codes.Unavailable, "Overloaded")
		expectEnd(t, b, codes.Unavailable, "AuthorityNotReady")
	})
}

func TestAnswerComesInTime(t *testing.T) {
	play(t, nil, func(t *testing.T, s *scene) {
		good := s.source.svid
		s.source.set(func(src *source) { src.svid = nil })
		c := s.open(t)
		c.First(nil, "default", "ROOTCA")
		pass(4 * time.Second)
		s.source.set(func(src *source) { src.svid = good })
		c.Ack()
		expect(t, c, "ROOTCA", "default")
		pass(time.Hour)
		if c.Ended() {
			t.Errorf("the stream ended: %v", c.Err())
		}
	})
}

// TestSlowReader: a client that does not answer is left alone until something
// newer waits for it.
func TestSlowReader(t *testing.T) {
	play(t, nil, func(t *testing.T, s *scene) {
		c, other := s.open(t), s.subscribed(t, "ROOTCA")
		c.First(nil, "ROOTCA")
		pass(time.Hour)
		if c.Ended() {
			t.Errorf("the stream ended: %v", c.Err())
		}
		s.m.AddRoot(t)
		s.source.set(func(src *source) { src.bundle = s.m.bundle() })
		expect(t, other, "ROOTCA", "ROOTCA")
		other.Ack()
		pass(30 * time.Second)
		if c.Ended() {
			t.Errorf("the stream ended: %v", c.Err())
		}
		pass(31 * time.Second)
		expectEnd(t, c, codes.Unavailable, "ReaderTooSlow")
		if other.Ended() {
			t.Error("a slow reader ended another stream")
		}
	})
}

func TestCredentialEnds(t *testing.T) {
	play(t, nil, func(t *testing.T, s *scene) {
		start := time.Now()
		s.source.set(func(src *source) { src.expires = start.Add(time.Hour) })
		ends := map[time.Duration]bool{}
		for range 10 {
			c := s.subscribed(t, "default")
			<-c.Done()
			expectEnd(t, c, codes.Unavailable, "CredentialEnding")
			end := time.Since(start)
			if end < 54*time.Minute || end > time.Hour {
				t.Errorf("the stream ended after %s, want within 6 min before an hour", end)
			}
			ends[end] = true
			start = time.Now()
			s.source.set(func(src *source) { src.expires, src.svid = start.Add(time.Hour), s.m.svid() })
		}
		if len(ends) < 5 {
			t.Errorf("streams end at %d moments of ten", len(ends))
		}
		if len(s.source.refused) > 0 {
			t.Errorf("the end of a token is recorded as %v", s.source.refused)
		}
	})
}

func TestSourceEnds(t *testing.T) {
	play(t, nil, func(t *testing.T, s *scene) {
		c, late := s.subscribed(t, "default"), s.open(t)
		late.First(nil, "default")
		synctest.Wait()
		s.source.end(attest.Deny(attest.ImageUnsigned, "", ""))
		expectEnd(t, c, codes.PermissionDenied, "ImageUnsigned")
		expectEnd(t, late, codes.PermissionDenied, "ImageUnsigned")
		if s.source.open() != 0 {
			t.Errorf("%d holders are left", s.source.open())
		}
	})
}

func TestClientLeaves(t *testing.T) {
	play(t, nil, func(t *testing.T, s *scene) {
		a, b := s.subscribed(t, "default"), s.subscribed(t, "default")
		a.CloseSend()
		b.Cancel()
		expectEnd(t, a, codes.OK, "")
		expectEnd(t, b, codes.Canceled, "")
		if got := metric(t, s.registry, "hallmark_sds_streams"); got != 0 || s.source.open() != 0 {
			t.Errorf("%v streams are counted and %d holders open, want none", got, s.source.open())
		}
	})
}

// TestDrain ends the streams of a stopping server, spread over its time.
func TestDrain(t *testing.T) {
	play(t, func(cfg *sds.Config) { cfg.Drain = 10 * time.Second }, func(t *testing.T, s *scene) {
		var streams []*sdstest.Stream
		for range 50 {
			streams = append(streams, s.subscribed(t, "default"))
		}
		s.stop()
		synctest.Wait()
		expectEnd(t, s.open(t), codes.Unavailable, "ShuttingDown")
		pass(5 * time.Second)
		synctest.Wait()
		early := 0
		for _, c := range streams {
			if c.Ended() {
				early++
			}
		}
		if early == 0 || early == len(streams) {
			t.Errorf("%d of %d streams ended in the first half of the time", early, len(streams))
		}
		pass(6 * time.Second)
		for _, c := range streams {
			expectEnd(t, c, codes.Unavailable, "ShuttingDown")
		}
		if len(s.source.refused) > 0 {
			t.Errorf("a stop is recorded as %v", s.source.refused)
		}
	})
}

func TestConfig(t *testing.T) {
	t.Parallel()
	if _, err := sds.New(sds.Config{}); err == nil {
		t.Error("a server was made of nothing")
	}
}
