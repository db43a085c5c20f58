package attest_test

import (
	"testing"

	"github.com/hallmark-ca/hallmark/attest"
)

// good are facts that agree with the token of a running pod.
func good() (attest.Bound, attest.Live) {
	pod := &attest.Pod{
		Ref:            attest.PodRef{Namespace: "shop", Name: "cart-1", UID: "pod-uid"},
		ServiceAccount: "cart", Node: "node-1", Phase: "Running",
	}
	bound := attest.Bound{
		Namespace: "shop", ServiceAccount: "cart", ServiceAccountUID: "sa-uid",
		PodName: "cart-1", PodUID: "pod-uid", NodeName: "node-1", NodeUID: "node-uid", Reviewed: true,
	}
	return bound, attest.Live{Pod: pod, NodeUID: "node-uid", ServiceAccountUID: "sa-uid", Current: true}
}

func TestCheckLive(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		change func(*attest.Bound, *attest.Live)
		want   attest.Reason
	}{
		"all agrees":           {func(*attest.Bound, *attest.Live) {}, 0},
		"pending":              {func(_ *attest.Bound, l *attest.Live) { l.Pod.Phase = "Pending" }, 0},
		"no node extras":       {func(b *attest.Bound, l *attest.Live) { b.NodeName, b.NodeUID, l.NodeUID = "", "", "" }, 0},
		"node by name alone":   {func(b *attest.Bound, l *attest.Live) { b.NodeUID, l.NodeUID = "", "" }, 0},
		"no pod":               {func(_ *attest.Bound, l *attest.Live) { l.Pod = nil }, attest.PodGone},
		"other uid":            {func(_ *attest.Bound, l *attest.Live) { l.Pod.Ref.UID = "new" }, attest.PodReplaced},
		"no uid at all":        {func(_ *attest.Bound, l *attest.Live) { l.Pod.Ref.UID = "" }, attest.PodReplaced},
		"other namespace":      {func(_ *attest.Bound, l *attest.Live) { l.Pod.Ref.Namespace = "bank" }, attest.PodReplaced},
		"other name":           {func(_ *attest.Bound, l *attest.Live) { l.Pod.Ref.Name = "cart-2" }, attest.PodReplaced},
		"other account":        {func(_ *attest.Bound, l *attest.Live) { l.Pod.ServiceAccount = "admin" }, attest.PodAccountMismatch},
		"terminating":          {func(_ *attest.Bound, l *attest.Live) { l.Pod.Terminating = true }, attest.PodTerminating},
		"succeeded":            {func(_ *attest.Bound, l *attest.Live) { l.Pod.Phase = "Succeeded" }, attest.PodFinished},
		"failed":               {func(_ *attest.Bound, l *attest.Live) { l.Pod.Phase = "Failed" }, attest.PodFinished},
		"unknown phase":        {func(_ *attest.Bound, l *attest.Live) { l.Pod.Phase = "Unknown" }, attest.PodFinished},
		"no phase":             {func(_ *attest.Bound, l *attest.Live) { l.Pod.Phase = "" }, attest.PodFinished},
		"other node":           {func(_ *attest.Bound, l *attest.Live) { l.Pod.Node = "node-2" }, attest.NodeMismatch},
		"not scheduled":        {func(_ *attest.Bound, l *attest.Live) { l.Pod.Node = "" }, attest.NodeMismatch},
		"node made anew":       {func(_ *attest.Bound, l *attest.Live) { l.NodeUID = "new" }, attest.NodeMismatch},
		"node gone":            {func(_ *attest.Bound, l *attest.Live) { l.NodeUID = "" }, attest.NodeMismatch},
		"account made anew":    {func(_ *attest.Bound, l *attest.Live) { l.ServiceAccountUID = "new" }, attest.AccountReplaced},
		"account gone":         {func(_ *attest.Bound, l *attest.Live) { l.ServiceAccountUID = "" }, attest.AccountReplaced},
		"token without uid":    {func(b *attest.Bound, _ *attest.Live) { b.PodUID = "" }, attest.PodReplaced},
		"token without sa uid": {func(b *attest.Bound, _ *attest.Live) { b.ServiceAccountUID = "" }, attest.AccountReplaced},
		// What is worse is told first.
		"gone and account gone": {func(_ *attest.Bound, l *attest.Live) { l.Pod, l.ServiceAccountUID = nil, "" }, attest.PodGone},
	} {
		bound, live := good()
		test.change(&bound, &live)
		err := attest.CheckLive(bound, live)
		if test.want == 0 {
			if err != nil {
				t.Errorf("%s: %v", name, err)
			}
			continue
		}
		if err == nil || attest.DenialOf(err).Reason != test.want {
			t.Errorf("%s: %v, want %s", name, err, test.want)
		} else if got := attest.DenialOf(err).Object; got != "shop/cart-1" {
			t.Errorf("%s: the refusal is about %q", name, got)
		}
	}
}
