package kube

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"sync/atomic"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/rest"
)

const (
	userAgent = "hallmark"
	dialTime  = 5 * time.Second
	keepAlive = 30 * time.Second
	callTime  = 10 * time.Second // of everything but a watch
)

var (
	namespacesAt = schema.GroupVersionResource{Version: "v1", Resource: "namespaces"}
	configMapsAt = schema.GroupVersionResource{Version: "v1", Resource: "configmaps"}
	leasesAt     = schema.GroupVersionResource{Group: "coordination.k8s.io", Version: "v1", Resource: "leases"}
	reviewsAt    = schema.GroupVersionResource{Group: "authorization.k8s.io", Version: "v1", Resource: "selfsubjectaccessreviews"}
)

// certificatesGroup serves ClusterTrustBundles, in the newest of these versions
// that the API server has.
const certificatesGroup = "certificates.k8s.io"

var trustBundleVersions = []string{"v1", "v1beta1"}

// errNoTrustBundles says that the API server has no ClusterTrustBundles.
var errNoTrustBundles = errors.New("the API server serves no ClusterTrustBundles: it takes version 1.33 with the feature gate of that name and certificates.k8s.io/v1beta1, or 1.37")

// api is the API server as this package uses it.
type api struct {
	dynamic  dynamic.Interface
	metadata metadata.Interface
	raw      *rest.RESTClient
	bundles  atomic.Pointer[schema.GroupVersionResource] // where ClusterTrustBundles are; nil: not known yet
}

func newAPI(cfg *rest.Config) (*api, error) {
	cfg = rest.CopyConfig(cfg)
	cfg.UserAgent = userAgent
	cfg.Timeout = 0 // a watch has none; calls bring their own
	cfg.QPS = -1    // writes have a limit of their own, which the Lease does not wait for
	if cfg.Dial == nil {
		cfg.Dial = (&net.Dialer{Timeout: dialTime, KeepAlive: keepAlive}).DialContext
	}
	client, err := rest.HTTPClientFor(cfg)
	if err != nil {
		return nil, fmt.Errorf("making a client of the Kubernetes API: %w", err)
	}
	own := *client
	// The API server redirects nobody; whoever does is not it.
	own.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	a := &api{}
	if a.dynamic, err = dynamic.NewForConfigAndClient(cfg, &own); err == nil {
		a.metadata, err = metadata.NewForConfigAndClient(cfg, &own)
	}
	if err == nil {
		plain := dynamic.ConfigFor(cfg)
		plain.GroupVersion = &schema.GroupVersion{}
		a.raw, err = rest.UnversionedRESTClientForConfigAndClient(plain, &own)
	}
	if err != nil {
		return nil, fmt.Errorf("making a client of the Kubernetes API: %w", err)
	}
	return a, nil
}

// at returns where the API has k. ClusterTrustBundles are looked for anew after
// [api.lost].
func (a *api) at(ctx context.Context, k kind) (schema.GroupVersionResource, error) {
	switch k {
	case namespaces:
		return namespacesAt, nil
	case configMaps:
		return configMapsAt, nil
	}
	if found := a.bundles.Load(); found != nil {
		return *found, nil
	}
	for _, version := range trustBundleVersions {
		served, err := a.serves(ctx, version, k.String())
		if err != nil {
			return schema.GroupVersionResource{}, err
		}
		if served {
			found := schema.GroupVersionResource{Group: certificatesGroup, Version: version, Resource: k.String()}
			a.bundles.Store(&found)
			return found, nil
		}
	}
	return schema.GroupVersionResource{}, errNoTrustBundles
}

// lost forgets where ClusterTrustBundles are: the API server was upgraded.
func (a *api) lost() { a.bundles.Store(nil) }

func (a *api) serves(ctx context.Context, version, resource string) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	raw, err := a.raw.Get().AbsPath("/apis/" + certificatesGroup + "/" + version).Do(ctx).Raw()
	if apierrors.IsNotFound(err) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("asking what the API server serves: %w", err)
	}
	var list metav1.APIResourceList
	if err := json.Unmarshal(raw, &list); err != nil {
		return false, fmt.Errorf("reading what the API server serves: %w", err)
	}
	return slices.ContainsFunc(list.APIResources, func(r metav1.APIResource) bool { return r.Name == resource }), nil
}

// away tells whether err means that the API server did not answer: no
// connection, no answer in time, 429 or 5xx. Any other answer is one.
func away(err error) bool {
	if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, io.ErrUnexpectedEOF) {
		return true
	}
	if status := apierrors.APIStatus(nil); errors.As(err, &status) {
		code := status.Status().Code
		return code == http.StatusTooManyRequests || code >= http.StatusInternalServerError
	}
	var network net.Error
	var transport *url.Error
	return errors.As(err, &transport) || errors.As(err, &network)
}

// source lists and watches one kind, as client-go's reflector asks, and makes
// [object]s of what comes.
type source struct {
	api      *api
	kind     kind
	path     []string // of the content; nil: metadata alone
	name     string   // "": all
	selector string
	told     func(error) // how each request went
}

// List implements cache.Lister.
func (s *source) List(opts metav1.ListOptions) (runtime.Object, error) {
	return s.ListWithContext(context.Background(), opts)
}

// Watch implements cache.Watcher.
func (s *source) Watch(opts metav1.ListOptions) (watch.Interface, error) {
	return s.WatchWithContext(context.Background(), opts)
}

// ListWithContext implements cache.ListerWithContext.
func (s *source) ListWithContext(ctx context.Context, opts metav1.ListOptions) (runtime.Object, error) {
	out, err := s.list(ctx, opts)
	s.tell(ctx, err)
	if err != nil {
		return nil, err
	}
	return out, nil
}

func (s *source) list(ctx context.Context, opts metav1.ListOptions) (*objects, error) {
	s.narrow(&opts)
	at, err := s.api.at(ctx, s.kind)
	if err != nil {
		return nil, err
	}
	out := &objects{}
	if s.path == nil {
		list, err := s.api.metadata.Resource(at).List(ctx, opts)
		if err != nil {
			return nil, err
		}
		out.ListMeta = list.ListMeta
		for i := range list.Items {
			out.Items = append(out.Items, metaOf(&list.Items[i]))
		}
		return out, nil
	}
	list, err := s.api.dynamic.Resource(at).List(ctx, opts)
	if err != nil {
		return nil, err
	}
	out.ListMeta = metav1.ListMeta{ResourceVersion: list.GetResourceVersion(), Continue: list.GetContinue(), RemainingItemCount: list.GetRemainingItemCount()}
	for i := range list.Items {
		out.Items = append(out.Items, objectOf(&list.Items[i], s.path))
	}
	return out, nil
}

// WatchWithContext implements cache.WatcherWithContext.
func (s *source) WatchWithContext(ctx context.Context, opts metav1.ListOptions) (watch.Interface, error) {
	s.narrow(&opts)
	at, err := s.api.at(ctx, s.kind)
	var w watch.Interface
	if err == nil && s.path == nil {
		w, err = s.api.metadata.Resource(at).Watch(ctx, opts)
	} else if err == nil {
		w, err = s.api.dynamic.Resource(at).Watch(ctx, opts)
	}
	s.tell(ctx, err)
	if err != nil {
		return nil, err
	}
	return watch.Filter(w, func(in watch.Event) (watch.Event, bool) {
		switch o := in.Object.(type) {
		case *metav1.PartialObjectMetadata:
			kept := metaOf(o)
			in.Object = &kept
		case *unstructured.Unstructured:
			kept := objectOf(o, s.path)
			in.Object = &kept
		case *metav1.Status:
			s.tell(ctx, apierrors.FromObject(o))
		}
		return in, true
	}), nil
}

func (s *source) narrow(opts *metav1.ListOptions) {
	opts.LabelSelector = s.selector
	if s.name != "" {
		opts.FieldSelector = fields.OneTermEqualSelector(metav1.ObjectNameField, s.name).String()
	}
}

func (s *source) tell(ctx context.Context, err error) {
	if ctx.Err() != nil {
		return // it is we who stopped
	}
	if s.kind == trustBundles && apierrors.IsNotFound(err) {
		s.api.lost()
	}
	s.told(err)
}
