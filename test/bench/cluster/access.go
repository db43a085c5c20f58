package cluster

import (
	"context"
	"fmt"

	authv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/clientcmd/api"
)

const (
	// HallmarkNamespace and HallmarkAccount name the account that Hallmark
	// runs as.
	HallmarkNamespace = "hallmark-system"
	HallmarkAccount   = "hallmark"
)

// AccountKubeconfig writes a kubeconfig of an existing service account, with a
// token of an hour, and returns its path. What the account may do is what RBAC
// gave it: nothing, unless somebody did.
func (c *Cluster) AccountKubeconfig(ctx context.Context, namespace, account string) (string, error) {
	hour := int64(3600)
	t, err := c.client.CoreV1().ServiceAccounts(namespace).CreateToken(ctx, account,
		&authv1.TokenRequest{Spec: authv1.TokenRequestSpec{ExpirationSeconds: &hour}}, metav1.CreateOptions{})
	if err != nil {
		return "", fmt.Errorf("asking for a token of %s/%s: %w", namespace, account, err)
	}
	path := c.file(namespace + "." + account + ".kubeconfig")
	return path, c.writeKubeconfig(path, &api.AuthInfo{Token: t.Status.Token})
}

// InstallHallmark makes the account that Hallmark runs as, with exactly the
// access that every installation has, and returns a kubeconfig of it. What
// exists already stays.
func (c *Cluster) InstallHallmark(ctx context.Context) (string, error) {
	name := metav1.ObjectMeta{Name: HallmarkAccount}
	core, rbac := c.client.CoreV1(), c.client.RbacV1()
	subjects := []rbacv1.Subject{{Kind: "ServiceAccount", Namespace: HallmarkNamespace, Name: HallmarkAccount}}
	role := rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: HallmarkAccount}
	for _, create := range []func() error{
		func() error {
			_, err := core.Namespaces().Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: HallmarkNamespace}}, metav1.CreateOptions{})
			return err
		},
		func() error {
			_, err := core.ServiceAccounts(HallmarkNamespace).Create(ctx, &corev1.ServiceAccount{ObjectMeta: name}, metav1.CreateOptions{})
			return err
		},
		func() error {
			_, err := rbac.ClusterRoles().Create(ctx, &rbacv1.ClusterRole{ObjectMeta: name, Rules: clusterRules}, metav1.CreateOptions{})
			return err
		},
		func() error {
			_, err := rbac.ClusterRoleBindings().Create(ctx, &rbacv1.ClusterRoleBinding{ObjectMeta: name, RoleRef: role, Subjects: subjects}, metav1.CreateOptions{})
			return err
		},
	} {
		if err := create(); err != nil && !apierrors.IsAlreadyExists(err) {
			return "", fmt.Errorf("installing Hallmark's account: %w", err)
		}
	}
	return c.AccountKubeconfig(ctx, HallmarkNamespace, HallmarkAccount)
}

// The access of deploy/manifests/access.yaml, which test/deploy holds against
// what is used; features that are switched on add to it.
var clusterRules = []rbacv1.PolicyRule{
	{APIGroups: []string{"authentication.k8s.io"}, Resources: []string{"tokenreviews"}, Verbs: []string{"create"}},
	{NonResourceURLs: []string{"/openid/v1/jwks"}, Verbs: []string{"get"}},
	{APIGroups: []string{""}, Resources: []string{"pods", "nodes", "serviceaccounts"}, Verbs: []string{"get", "list", "watch"}},
}
