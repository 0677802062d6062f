package inventory

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"math"
	"regexp"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/vouchd/vouchd/redact"
)

// A certainty is how sure a place makes it that a value is a secret.
type certainty int

const (
	exact certainty = iota // nothing but a secret stands there
	named                  // variables stand there, of which names tell
	loose                  // text stands there that anybody may have written as an example
)

// What a value must have to count, in bytes.
const (
	leastExact = 4
	leastNamed = 6
	leastLoose = 16
	mostValue  = 64 << 10
)

// isSecret reports whether a value is a secret.
func isSecret(sure certainty, name string, value []byte) bool {
	v := bytes.TrimSpace(value)
	if len(v) < leastExact || len(v) > mostValue || !isText(v) || isReference(v) || isPlaceholder(v) {
		return false
	}
	if sure == exact {
		return true
	}
	shape := shapeOf(v)
	switch {
	case shape == accessKeyID:
		return false
	case shape != "":
		return true
	case isSecretURL(v):
		return sure == named || isRandomURL(v)
	case !secretName.MatchString(name) || publicName.MatchString(name) || isPlain(v):
		return false
	case sure == named && passwordName.MatchString(name):
		return len(v) >= leastNamed && !isDefaultPassword(v) // one of words is a password as well
	case sure == named:
		return len(v) >= leastNamed && !isDefault(v)
	}
	return len(v) >= leastLoose && isRandom(v)
}

// isText reports whether a value is what somebody could have typed or pasted.
func isText(v []byte) bool {
	return utf8.Valid(v) && !bytes.ContainsFunc(v, func(r rune) bool { return r < ' ' && r != '\t' && r != '\n' && r != '\r' || r == 0x7f })
}

// accessKeyID is the shape of what AWS calls an access key's ID: a name, which is of use
// to nobody without the key that stands beside it.
const accessKeyID = "aws-access-key"

// shapeOf returns the shape of a value, or of the first secret in it.
func shapeOf(value []byte) string {
	if found := redact.Find(value); len(found) > 0 {
		return found[0].Shape
	}
	return ""
}

// handlePrefix begins a value that stands for a credential of vouchd.
const handlePrefix = "vouch:"

func isHandle(v []byte) bool { return bytes.HasPrefix(bytes.TrimSpace(v), []byte(handlePrefix)) }

// reference is a value that says where the secret is to be had.
var reference = regexp.MustCompile(`(?i)^(\$[a-z_{(]|%[a-z_]+%|!(vault|secret|ref|sub|env)\b|(op|vault|bao|secrets?|keyring|keychain|env|file|fd|ref\+[a-z]+|awssm|gcpsm|aws-sm|doppler|infisical|pass|sops|bws|akv|azkv)(://|:)|ENC(RYPTED)?\[|arn:aws[a-z-]*:|projects/[^/]+/secrets/|@microsoft\.keyvault|process\.env|os\.environ|secretref:|secretkeyref)`)

// isReference reports whether a value only names a secret, or a place where one would be
// put in.
func isReference(v []byte) bool {
	if reference.Match(v) {
		return true
	}
	for _, mark := range [][2]string{{"${", "}"}, {"$(", ")"}, {"{{", "}}"}, {"<%", "%>"}, {"%(", ")"}, {"%{", "}"}} {
		if i := bytes.Index(v, []byte(mark[0])); i >= 0 && bytes.Contains(v[i:], []byte(mark[1])) {
			return true
		}
	}
	for _, mark := range [][2]string{{"((", "))"}, {"__", "__"}, {"[[", "]]"}} {
		if len(v) > 4 && bytes.HasPrefix(v, []byte(mark[0])) && bytes.HasSuffix(v, []byte(mark[1])) {
			return true
		}
	}
	if i := bytes.Index(v, []byte(":$")); i >= 0 && bytes.Contains(v, []byte("://")) {
		return true // a URL that a shell completes
	}
	return v[0] == '<' && v[len(v)-1] == '>' || v[0] == '{' && v[len(v)-1] == '}' && !bytes.Contains(v, []byte(`"`)) ||
		v[0] == '$' && len(v) > 1 && isWordChar(v[1]) || v[0] == '`'
}

func isWordChar(c byte) bool {
	return c == '_' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9'
}

// What documents have in the place of a secret. Words of up to four letters count only
// with punctuation around them: a random value has such in it by chance.
var (
	placeholderText = regexp.MustCompile(`(?i)change[-_. ]?(me|this|it|in)|replace[-_. ]?(me|this|with)|your[-_. ]?(secure|strong|own|real|password|pass|token|key|secret|api|value|string)|your[-_. ]|[-_. ]your|example|placeholder|dummy|redacted|insert[-_. ]|fill[-_. ]?(in|me)|(^|[^a-z0-9])(todo|x{3,})([^a-z0-9]|$)|fixme|x{6}|\*\*\*|\.\.\.|…|(not|no)[-_. ](a[-_. ])?(real|secret|valid|needed|used)|my[-_. ]?(secret|token|password|api|key)|super[-_. ]?secret|(secret|api|access|private|token|auth|pass(word)?)[-_. ]?(key|token|here|goes|value)([-_. ]here)?$|deadbeef|foobar|lorem|012345|123456|234567|abcdef|qwerty`)
	placeholderWord = regexp.MustCompile(`(?i)(^|[-_.: /@])(sample|test|testing|fake|demo|secret|password|passwd|pass|token|key|none|null|nil|undefined|unset|empty|default|dev|local|foo|bar|baz|here|mock|stub|invalid|unused)([-_.: /@]|[0-9]{0,4}$)`)
)

// isPlaceholder reports whether a value stands in a document in the place of a secret.
func isPlaceholder(v []byte) bool {
	long := shapeOf(v) != "" || len(v) > 200 // has such words by chance
	if !long && placeholderText.Match(v) || len(v) <= 64 && placeholderWord.Match(v) && !isRandomBesides(v) {
		return true
	}
	if long && len(v) < 100 && exampleText.Match(v) {
		return true
	}
	for _, known := range wellKnown {
		if bytes.Contains(v, []byte(known)) {
			return true
		}
	}
	return distinct(v) <= max(2, min(4, len(v)/5))
}

// wellKnown begin keys that emulators and documents are shipped with.
var wellKnown = []string{
	"Eby8vdM02xNOcqFlqUwJPLlm",                                       // Azurite
	"C2y6yDjf5/R+ob0N8A7Cgv30",                                       // the emulator of Cosmos DB
	"eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.eyJzdWIiOiIxMjM0NTY3ODkwI", // jwt.io
}

var exampleText = regexp.MustCompile(`(?i)example|x{6}|your[-_]|[-_]your|yourkey|yourtoken|placeholder|dummy|changeme|redacted|0123456789|1234567890|abcdefghij|fake[-_]|[-_]fake|fakekey|faketoken`)

// isRandomBesides reports whether a value is random text apart from such a word, as the
// test keys of vendors are.
func isRandomBesides(v []byte) bool {
	rest := placeholderWord.ReplaceAll(v, nil)
	return len(rest) >= leastLoose && isRandom(rest)
}

func distinct(v []byte) (n int) {
	var seen [256]bool
	for _, c := range v {
		if !seen[c] {
			seen[c] = true
			n++
		}
	}
	return n
}

// Names that suggest a secret, and names of what is about one.
var (
	passwordName = regexp.MustCompile(`(?i)passw(or)?d$|passphrase$|(^|[-_.])(pg|db|mysql)?(pass|pwd|pw)$`)
	secretName   = regexp.MustCompile(`(?i)(api|access|secret|private|signing|encryption|encrypt|master|account|storage|auth|app|license|service|server|session|webhook|deploy|consumer|client|admin|root|shared|jwt|hmac|aes|cookie|rails|django|flask|laravel|write|license|integration|routing|subscription|instrumentation)[-_.]?keys?$|(^|[-_.])(key|pw|pat|psk|pin|dsn|salt|pepper|jwt|otp|seed|auth)$|^key[-_]|token|secret|passw|passphrase|passcode|(^|[-_.]|db|my|pg)(pass|pwd)|pwd$|pass$|credential|bearer|mnemonic|connection_?string|webhook|authorization|_auth$|cookie$`)
	publicName   = regexp.MustCompile(`(?i)public|publishable|anon[-_]?key|site[-_]?key|cache[-_]?key|^(old)?pwd$|[-_.](id|ids|name|names|file|files|path|paths|dir|folder|url|uri|endpoint|host|port|user|username|ttl|expiry|expires|expiration|exp|lifetime|age|duration|timeout|interval|type|kind|alg|algorithm|header|headers|prefix|suffix|issuer|audience|scope|scopes|region|method|mode|enabled|enable|disabled|required|length|len|size|limit|limits|count|min|max|policy|store|provider|backend|version|format|field|arn|ref|socket|cmd|command|helper|program|location|domain|origin|email|budget|fingerprint|hash|digest|sha256|checksum|encoding|env|var|uses|usage|tokens)$|max[-_.]?tokens|tokeniz|^(gpg|apt|rpm|dnf)[-_]?key|keyboard|keymap|keycode|keyring$|ssh_auth_sock|askpass|pubkey|authorized[-_]?keys?$|known[-_]?hosts|key_?id$|keyserver|monkey|turkey|hotkey|keybind`)
	plainValues  = regexp.MustCompile(`(?i)^(true|false|yes|no|on|off|null|none|auto|always|never|[-+]?[0-9]{1,8}([.][0-9]{1,6})?|[0-9]+(ms|s|m|h|d|k|kb|mb|gb)|[0-9]{4}-[0-9]{2}-[0-9]{2}([T ][0-9:.]{5,18}(z|[-+][0-9:]{4,6})?)?|v?[0-9]{1,4}([.][0-9]{1,4}){1,3}(:[0-9]{1,5})?|[a-z]{2}-[a-z]{4,9}-[0-9]|[a-z0-9.]+@[a-z0-9.-]+[.][a-z]{2,12})$`)
	plainPath    = regexp.MustCompile(`^(~|\.{1,2})?(/[A-Za-z0-9._@+-]{1,64})+/?$`)
	plainURL     = regexp.MustCompile(`(?i)^[a-z][a-z0-9+.-]*://[^@\s]*$|^([a-z0-9-]{1,63}[.])+[a-z]{2,12}(:[0-9]{1,5})?(/[^\s@]*)?$`)
	plainWords   = regexp.MustCompile(`^([a-z]{2,20}|[A-Z]{2,20}|[A-Z][a-z]{1,20})([-_. /:,]([a-z]{1,20}|[A-Z]{1,20}|[A-Z][a-z]{1,20}|[0-9]{1,3}))*$`)
	mixedWord    = regexp.MustCompile(`^[a-z]{2,}([A-Z][a-z]{2,})+$`)
)

// isPlain reports whether a value is plainly something else: a switch, a number, a path,
// an address.
func isPlain(v []byte) bool {
	if bytes.Contains(v, []byte(".sentry.io/")) {
		return true // a project's address, which its pages have in them
	}
	return plainValues.Match(v) || plainPath.Match(v) && !isRandom(bytes.ReplaceAll(v, []byte("/"), nil)) || plainURL.Match(v)
}

// isDefault reports whether a value is a word, or several: what a program is shipped
// with, the name of something, or a password that a list has.
func isDefault(v []byte) bool {
	if mixedWord.Match(v) {
		return true
	}
	if !plainWords.Match(v) {
		return false
	}
	return len(v) < 16 || bytes.ContainsAny(v, "-_. /:,") || !isRandom(v) // an app password is one of 16 letters
}

// isRandom reports whether a value looks like no word of a language and no name.
func isRandom(v []byte) bool {
	if len(v) < 8 || bytes.ContainsAny(v, " \t\n(){};,") {
		return false
	}
	if mixedWord.Match(v) || plainWords.Match(v) && bytes.ContainsAny(v, "-_. /:") {
		return false
	}
	var counts [256]int
	var digits, letters int
	for _, c := range v {
		counts[c]++
		switch {
		case c >= '0' && c <= '9':
			digits++
		case c|0x20 >= 'a' && c|0x20 <= 'z':
			letters++
		}
	}
	bits := 0.0
	for _, n := range counts {
		if n > 0 {
			p := float64(n) / float64(len(v))
			bits -= p * math.Log2(p)
		}
	}
	if digits == 0 && !mixedCase(v) {
		return bits > 3.2 && vowels(v)*4 < len(v) // letters of one case: a word, unless there is no speaking it
	}
	return letters > 0 && bits > min(3.0, 0.75*math.Log2(float64(len(v))))
}

func mixedCase(v []byte) bool {
	return bytes.ContainsFunc(v, func(r rune) bool { return r >= 'a' && r <= 'z' }) &&
		bytes.ContainsFunc(v, func(r rune) bool { return r >= 'A' && r <= 'Z' })
}

func vowels(v []byte) (n int) {
	for _, c := range bytes.ToLower(v) {
		if strings.IndexByte("aeiouy", c) >= 0 {
			n++
		}
	}
	return n
}

var (
	userinfo = regexp.MustCompile(`(?i)^[a-z][a-z0-9+.-]{0,30}://([^/\s:@?#]*):([^\s/@]*)@([^/\s:?#,]*)`)
	queryKey = regexp.MustCompile(`(?i)^https?://[^\s]+[?&](sig|signature|token|access_token|api[-_]?key|key|secret|password|auth)=([^&\s#]{16,})`)
	hookURL  = regexp.MustCompile(`(?i)^https://[^/\s]*discord(app)?\.com/api/webhooks/[0-9]+/([A-Za-z0-9_-]{20,})|^https://[^/\s]+\.webhook\.office\.com/([A-Za-z0-9@/_-]{40,})`)
)

// isSecretURL reports whether whoever has a URL may use what is behind it.
func isSecretURL(v []byte) bool {
	if m := userinfo.FindSubmatch(v); m != nil {
		password := m[2]
		local := bytes.Equal(m[1], password) && len(password) < leastLoose // postgres:postgres@
		return len(password) >= leastExact && !local && !isReference(password) && !isPlaceholder(password) && !isDefaultPassword(password)
	}
	if m := queryKey.FindSubmatch(v); m != nil {
		return !isReference(m[2]) && !isPlaceholder(m[2]) && isRandom(m[2])
	}
	return hookURL.Match(v)
}

// isRandomURL reports whether what makes a URL a secret is random.
func isRandomURL(v []byte) bool {
	m := userinfo.FindSubmatch(v)
	return m == nil || len(m[2]) >= leastLoose && isRandom(m[2])
}

// isDefaultPassword reports whether images and tutorials are shipped with a password.
func isDefaultPassword(p []byte) bool {
	switch string(bytes.ToLower(p)) {
	case "postgres", "mysql", "mariadb", "mongo", "redis", "rabbitmq", "guest", "admin", "root", "user", "minio", "minioadmin", "toor", "sa":
		return true
	}
	return plainWords.Match(p) && len(p) < 6
}

// expiryOf returns when a value says it ends to work, which a JWT does (RFC 7519 §4.1.4).
func expiryOf(value []byte) time.Time {
	parts := bytes.Split(bytes.TrimSpace(value), []byte("."))
	if len(parts) != 3 || !bytes.HasPrefix(parts[0], []byte("eyJ")) {
		return time.Time{}
	}
	claims, err := base64.RawURLEncoding.DecodeString(string(parts[1]))
	var is struct {
		Exp float64 `json:"exp"`
	}
	if err != nil || json.Unmarshal(claims, &is) != nil || is.Exp <= 0 || is.Exp > 1<<40 {
		return time.Time{}
	}
	return time.Unix(int64(is.Exp), 0).UTC()
}

// broad says why a secret of a vendor may do more than one program needs, where its form
// tells.
func broad(shape string, value []byte) string {
	has := func(prefix string) bool { return bytes.Contains(value, []byte(prefix)) }
	switch {
	case shape == "github-token" && has("ghp_"):
		return "a classic token: it reaches every repository its user does"
	case shape == "openai-key" && !has("sk-proj-") && !has("sk-svcacct-"):
		return "a key of a user or a whole organisation, not of one project"
	case shape == "anthropic-key" && has("sk-ant-admin"):
		return "an administrator's key"
	case shape == "stripe-key" && has("sk_live_"):
		return "a secret key; a restricted one (rk_) may do less"
	case shape == "slack-token" && has("xoxp-"):
		return "it acts as its user, everywhere the user may"
	case shape == "azure-storage-key":
		return "the key of a whole storage account"
	}
	return ""
}
