package inventory

import (
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/vouchd/vouchd/inventory/text"
)

// azureFinder reads the caches of Azure's command line and of MSAL.
var azureFinder = finder{
	kind: Azure,
	is: func(p place) bool {
		return (p.dir == ".azure" || p.dir == ".IdentityService") && slices.Contains([]string{
			"msal_token_cache.json", "accessTokens.json", "service_principal_entries.json", "msal.cache", "servicePrincipalProfile.json", "credentials",
		}, p.name)
	},
	read: func(r *reader) error {
		if r.place.name == "credentials" { // of Ansible
			for _, e := range text.INI(r.data) {
				if e.Key == "secret" || e.Key == "password" {
					r.whole(e.Section+" "+e.Key, "azure-client-secret", e.Value, e.Start, e.End)
				}
			}
			return nil
		}
		leaves, err := text.JSON(r.data)
		for _, l := range leaves {
			r.azureLeaf(leaves, l)
		}
		return err
	},
	replace: migrateFile,
	hint:    func(place) string { return "a broker needs no key: federation, in docs/brokers.md" },
}

func (r *reader) azureLeaf(leaves []text.Leaf, l text.Leaf) {
	if len(l.Path) < 1 {
		return
	}
	item := strings.Join(l.Path, ".")
	switch key := strings.ToLower(l.Path[len(l.Path)-1]); {
	case key == "client_secret" || key == "accesstoken" && strings.HasPrefix(r.place.name, "service"):
		r.whole(item, "azure-client-secret", l.Value, l.Start, l.End)
	case key == "refreshtoken", key == "secret" && slices.Contains(l.Path, "RefreshToken"):
		f := r.whole(item, "azure-refresh-token", l.Value, l.Start, l.End)
		f.Broad = "it may do whatever its user may"
	case key == "accesstoken", key == "secret" && slices.Contains(l.Path, "AccessToken"):
		f := r.whole(item, "azure-access-token", l.Value, l.Start, l.End)
		beside := slices.Concat(l.Path[:len(l.Path)-1], []string{"expires_on"})
		if at, err := strconv.ParseInt(textOf(leaves, beside...), 10, 40); err == nil && f.Expires.IsZero() {
			f.Expires = time.Unix(at, 0).UTC()
		}
	case key == "certificatefile", key == "client_certificate":
		if isPEMKey(l.Value) {
			r.whole(item, "private-key", l.Value, l.Start, l.End)
		}
	}
}
