package policy

import (
	"fmt"
	"regexp"
	"slices"
)

const (
	maxMatches      = 64 // in one policy
	maxRequirements = 64 // in one selector
	maxValues       = 64 // in one requirement
)

// match is one entry of spec.match. At issuance there is only a pod, so an
// entry for any kind of workload covers every pod that its selector takes.
type match struct {
	selector selector
}

// selector is a checked label selector: all requirements must hold.
type selector []requirement

type requirement struct {
	key    string
	op     string
	values []string
}

// Operators of matchExpressions.
const (
	opIn           = "In"
	opNotIn        = "NotIn"
	opExists       = "Exists"
	opDoesNotExist = "DoesNotExist"
)

func (s selector) matches(labels map[string]string) bool {
	for _, r := range s {
		if !r.holds(labels) {
			return false
		}
	}
	return true
}

func (r requirement) holds(labels map[string]string) bool {
	value, ok := labels[r.key]
	switch r.op {
	case opIn:
		return ok && slices.Contains(r.values, value)
	case opNotIn: // as Kubernetes reads it: no such label is not in it
		return !ok || !slices.Contains(r.values, value)
	case opExists:
		return ok
	default:
		return !ok
	}
}

// The syntax of labels (apimachinery's validation of qualified names and
// values).
var (
	labelKey   = regexp.MustCompile(`^([a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?/)?[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?$`)
	labelValue = regexp.MustCompile(`^([A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?)?$`)
)

// workloads are the resources that a match entry can name, with their group.
// Another group matches no pod, and a policy that matches nothing would be one
// that vanished.
var workloads = map[string]string{
	"pods": "", "replicasets": "apps", "deployments": "apps", "statefulsets": "apps", "daemonsets": "apps",
	"jobs": "batch", "cronjobs": "batch",
}

// matches compiles spec.match. Where it cannot be read which pods are meant, all
// are.
func (c *compiler) matches(raw []rawMatch) []match {
	before := c.wrong
	if len(raw) > maxMatches {
		c.add("spec.match", fmt.Sprintf("there are %d entries, at most %d are allowed", len(raw), maxMatches), "split the policy")
		return nil
	}
	var all []match
	for n, m := range raw {
		path := fmt.Sprintf("spec.match[%d]", n)
		group, known := workloads[m.Resource]
		switch {
		case m.Resource == "":
			c.add(path+".resource", "it is missing", "write pods")
		case !known:
			c.add(path+".resource", show(m.Resource)+" is not known", "write pods, replicasets, deployments, statefulsets, daemonsets, jobs or cronjobs")
		case m.Group != group:
			c.add(path+".group", m.Resource+" are not in group "+show(m.Group), fmt.Sprintf("write %q", group))
		case m.Version != "v1" && m.Version != "*":
			c.add(path+".version", m.Resource+" have no version "+show(m.Version), "write v1")
		}
		c.unknownYet(path+".namespaceSelector", m.NamespaceSelector)
		var s selector
		if m.Selector != nil {
			s = c.selector(path+".selector", m.Selector)
			c.warn(path+".selector", "it reads the pod's labels, and whoever writes the pod chooses them", "name images by globs where that must not be left to them")
		}
		all = append(all, match{selector: s})
	}
	if c.wrong > before {
		return nil
	}
	return all
}

func (c *compiler) selector(path string, raw *rawSelector) selector {
	if len(raw.MatchLabels)+len(raw.MatchExpressions) > maxRequirements {
		c.add(path, fmt.Sprintf("more than %d requirements", maxRequirements), "split the policy")
		return nil
	}
	var s selector
	for _, key := range sortedKeys(raw.MatchLabels) {
		c.label(path+".matchLabels", key, raw.MatchLabels[key])
		s = append(s, requirement{key: key, op: opIn, values: []string{raw.MatchLabels[key]}})
	}
	for n, e := range raw.MatchExpressions {
		path := fmt.Sprintf("%s.matchExpressions[%d]", path, n)
		c.label(path+".key", e.Key, e.Values...)
		switch e.Operator {
		case opIn, opNotIn:
			if len(e.Values) == 0 || len(e.Values) > maxValues {
				c.add(path+".values", fmt.Sprintf("%s needs 1 to %d values", e.Operator, maxValues), "correct the list")
			}
		case opExists, opDoesNotExist:
			if len(e.Values) > 0 {
				c.add(path+".values", e.Operator+" takes no values", "take them out")
			}
		default:
			c.add(path+".operator", show(e.Operator)+" is not known", "write In, NotIn, Exists or DoesNotExist")
		}
		s = append(s, requirement{key: e.Key, op: e.Operator, values: e.Values})
	}
	return s
}

func (c *compiler) label(path, key string, values ...string) {
	if !labelKey.MatchString(key) {
		c.add(path, show(key)+" is no label", "write [PREFIX/]NAME")
	}
	for _, v := range values {
		if !labelValue.MatchString(v) {
			c.add(path, show(v)+" is no value of a label", "correct it")
		}
	}
}
