package inventory

import (
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"path/filepath"
	"slices"
	"strings"

	"github.com/vouchd/vouchd/inventory/text"
)

// kubeconfigFinder reads what clients of Kubernetes have (client-go's Config v1).
var kubeconfigFinder = finder{
	kind: Kubeconfig,
	is: func(p place) bool {
		n := strings.ToLower(p.name)
		switch {
		case p.dir == ".kube":
			return n == "config" || strings.HasSuffix(n, ".yaml") || strings.HasSuffix(n, ".yml") || strings.HasSuffix(n, ".conf") ||
				strings.HasSuffix(n, ".config") || strings.HasPrefix(n, "config")
		case n == "kubeconfig", strings.HasSuffix(n, ".kubeconfig"), n == "kubeconfig.yaml", n == "kubeconfig.yml", n == "kubeconfig.conf", n == "kubeconfig.json",
			strings.HasPrefix(n, "kubeconfig-") && (filepath.Ext(n) == ".yaml" || filepath.Ext(n) == ".yml" || filepath.Ext(n) == ""):
			return true
		}
		return p.up == "etc" && p.dir == "kubernetes" && strings.HasSuffix(n, ".conf") || n == "k3s.yaml" || n == "rke2.yaml"
	},
	read: func(r *reader) error {
		leaves, err := text.YAML(r.data)
		for _, l := range leaves {
			if len(l.Path) < 4 || l.Path[0] != "users" || l.Path[2] != "user" {
				continue
			}
			user := textOf(leaves, "users", l.Path[1], "name")
			if l.Path[3] == "exec" && len(l.Path) == 5 && l.Path[4] == "command" && asksVouch(l.Value) {
				r.lease("user "+user, l.Start)
				continue
			}
			key := l.Path[len(l.Path)-1]
			if what := kubeconfigSecrets[strings.Join(l.Path[3:], ".")]; what != "" {
				f := r.whole("user "+user+" "+key, what, l.Value, l.Start, l.End)
				if isAdministrator(textOf(leaves, "users", l.Path[1], "user", "client-certificate-data")) || user == "kubernetes-admin" || user == "cluster-admin" {
					f.Broad = "an administrator of the whole cluster"
				}
			}
			if l.Path[3] == "exec" && key == "value" && len(l.Path) > 5 {
				name := textOf(leaves, slices.Concat(l.Path[:len(l.Path)-1], []string{"name"})...)
				r.consider(named, name, "user "+user+" "+name, l.Value, l.Start, l.End)
			}
		}
		return err
	},
	replace: func(_ *Finding, path string) string { return "vouch migrate kubeconfig " + path },
}

// kubeconfigSecrets are the keys of a user, and whose secret is there.
var kubeconfigSecrets = map[string]string{
	"token": "kubernetes-token", "password": "kubernetes-password", "client-key-data": "kubernetes-client-key",
	"auth-provider.config.access-token": "kubernetes-token", "auth-provider.config.refresh-token": "oidc-refresh-token",
	"auth-provider.config.id-token": "kubernetes-token", "auth-provider.config.client-secret": "oidc-client-secret",
}

// isAdministrator reports whether a certificate is of the group that no rule holds back.
func isAdministrator(data string) bool {
	text, err := base64.StdEncoding.DecodeString(data)
	if err != nil {
		return false
	}
	block, _ := pem.Decode(text)
	if block == nil {
		return false
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	return err == nil && slices.Contains(cert.Subject.Organization, "system:masters")
}
