package redact

import (
	"bytes"
	"fmt"
	"io"
	"slices"
)

// A shape is the form in which a vendor gives out a secret: parts one after the other,
// between bytes that are none of theirs.
type shape struct {
	name  string
	parts []part
}

// A part is text, and what follows it: min to max bytes of a kind, and none of it after.
type part struct {
	text     string
	of       kind
	min, max int
}

// A kind is a set of bytes.
type kind uint8

const (
	nothing    kind = iota
	alnum           // letters and digits
	upper           // upper-case letters and digits
	lowerHex        // lower-case hexadecimal
	word            // letters, digits, _ and -
	dotted          // and .
	base64Char      // its alphabet and =
	path            // letters, digits and /
	armoured        // base64 in lines, as they are or in JSON
	kindCount       // how many there are
)

var kinds = func() (sets [kindCount][256]bool) {
	const (
		uppers  = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
		letters = uppers + "abcdefghijklmnopqrstuvwxyz"
		digits  = "0123456789"
	)
	for k, chars := range map[kind]string{
		alnum: letters + digits, upper: uppers + digits, lowerHex: digits + "abcdef", word: letters + digits + "_-",
		dotted: letters + digits + "_-.", base64Char: letters + digits + "+/=", path: letters + digits + "/",
		armoured: letters + digits + "+/= \r\n\\",
	} {
		for _, c := range []byte(chars) {
			sets[k][c] = true
		}
	}
	return sets
}()

// shapes are those that can be told by how they begin, as their vendors document them.
// The first that fits counts. A vendor's keys without such a beginning are not among
// them: what looks for any random text finds more that is none.
var shapes = slices.Concat(
	of("anthropic-key", word, 32, 256, "sk-ant-"),
	of("openai-key", word, 40, 256, "sk-"),
	of("groq-key", alnum, 48, 64, "gsk_"),
	of("xai-key", alnum, 70, 96, "xai-"),
	of("perplexity-key", alnum, 40, 64, "pplx-"),
	of("replicate-token", alnum, 37, 40, "r8_"),
	of("huggingface-token", alnum, 30, 40, "hf_", "api_org_"),
	of("github-token", alnum, 36, 251, "ghp_", "gho_", "ghu_", "ghs_", "ghr_"),
	of("github-token", word, 60, 251, "github_pat_"),
	of("gitlab-token", dotted, 20, 320, "glpat-", "gldt-", "glrt-", "glcbt-", "glptt-", "glft-", "glsoat-", "glimt-", "glagent-", "gloas-"),
	of("slack-token", word, 20, 256, "xoxb-", "xoxp-", "xoxa-", "xoxr-", "xoxs-", "xoxe-", "xoxe.xoxb-", "xoxe.xoxp-", "xoxc-", "xoxd-", "xapp-"),
	of("slack-webhook", path, 24, 80, "https://hooks.slack.com/services/"),
	of("stripe-key", alnum, 16, 256, "sk_live_", "rk_live_", "sk_test_", "rk_test_", "whsec_"),
	of("aws-access-key", upper, 16, 16, "AKIA", "ASIA"),
	of("google-api-key", word, 35, 35, "AIza"),
	of("google-oauth-token", dotted, 30, 2048, "ya29."),
	of("google-oauth-secret", word, 28, 28, "GOCSPX-"),
	of("azure-storage-key", base64Char, 86, 88, "AccountKey="),
	of("digitalocean-token", lowerHex, 64, 64, "dop_v1_", "doo_v1_", "dor_v1_"),
	of("npm-token", alnum, 36, 36, "npm_"),
	of("pypi-token", word, 50, 1024, "pypi-AgE"),
	of("rubygems-key", lowerHex, 48, 48, "rubygems_"),
	of("docker-token", word, 27, 32, "dckr_pat_", "dckr_oat_"),
	of("vault-token", word, 24, 256, "hvs.", "hvb.", "hvr."),
	of("shopify-token", lowerHex, 32, 32, "shpat_", "shpss_", "shpca_", "shppa_"),
	of("linear-key", alnum, 40, 40, "lin_api_", "lin_oauth_"),
	of("notion-token", alnum, 43, 50, "ntn_", "secret_"),
	of("figma-token", word, 40, 48, "figd_"),
	of("sentry-token", alnum, 64, 64, "sntryu_"),
	of("sentry-token", base64Char, 80, 512, "sntrys_eyJ"),
	of("grafana-token", base64Char, 32, 400, "glc_"),
	of("grafana-token", word, 41, 41, "glsa_"),
	of("databricks-token", lowerHex, 32, 32, "dapi"),
	of("planetscale-token", dotted, 32, 64, "pscale_tkn_", "pscale_pw_", "pscale_oauth_"),
	of("tailscale-key", word, 20, 64, "tskey-"),
	of("doppler-token", alnum, 40, 44, "dp.pt.", "dp.st.", "dp.sa."),
	of("onepassword-token", word, 250, 2048, "ops_eyJ"),
	of("postman-key", word, 59, 59, "PMAK-"),
	of("atlassian-token", base64Char, 150, 256, "ATATT3", "ATCTT3"),
	of("age-key", upper, 58, 58, "AGE-SECRET-KEY-1"),
	[]shape{
		{"sendgrid-key", []part{{"SG.", word, 20, 24}, {".", word, 39, 50}}},
		{"jwt", []part{{"eyJ", word, 10, 2048}, {".eyJ", word, 10, 8192}, {".", word, 20, 1024}}},
	},
	privateKeys("", "RSA ", "EC ", "DSA ", "OPENSSH ", "ENCRYPTED "),
)

func of(name string, k kind, least, most int, prefixes ...string) (list []shape) {
	for _, p := range prefixes {
		list = append(list, shape{name, []part{{p, k, least, most}}})
	}
	return list
}

func privateKeys(kinds ...string) (list []shape) {
	for _, k := range kinds {
		list = append(list, shape{"private-key", []part{{"-----BEGIN " + k + "PRIVATE KEY-----", armoured, 32, 8192}, {"-----END " + k + "PRIVATE KEY-----", nothing, 0, 0}}})
	}
	return list
}

// handle is what follows a vendor's prefix in a handle, which is no secret: it stands in
// place of one, and works for no other process.
const handle = "vouch"

// ShortestShape is the length of the shortest secret that has one of the shapes, in bytes.
const ShortestShape = 20

var byFirst = func() (lists [256][]*shape) {
	for i := range shapes {
		first := shapes[i].parts[0].text[0]
		lists[first] = append(lists[first], &shapes[i])
	}
	return lists
}()

// beginnings has a mark where the first three bytes of a shape hash to. Few other bytes do.
var beginnings = func() (marks [1 << 12]bool) {
	for _, s := range shapes {
		marks[hash(s.parts[0].text)] = true
	}
	return marks
}()

// hash is that of the first three bytes, to 12 bits.
func hash[T string | []byte](b T) uint32 {
	return (uint32(b[0]) | uint32(b[1])<<8 | uint32(b[2])<<16) * 0x9e3779b1 >> 20
}

// next returns where a shape may begin, from there on; the end of the text if nowhere.
func next(text []byte, at int) int {
	for ; at+3 <= len(text); at++ {
		if beginnings[hash(text[at:at+3])] {
			return at
		}
	}
	return at // the last two bytes tell too little
}

// A ShapeWriter passes on what is written to it, and notes text in the shape of a secret,
// or replaces it. It is no [Writer]: it knows no secret, so it may hold back what could
// become one.
type ShapeWriter struct{ *shaped }

type shaped struct {
	to      io.Writer
	replace bool
	held    []byte
	done    int                       // bytes of held that have passed, and are kept to be looked back at
	runs    [kindCount][maxParts]span // in held, that are known to be of that kind whole
	counts  map[string]int
	err     error
}

// maxParts is the number of a shape's parts.
const maxParts = 3

// Shapes returns a writer to w. With replace, each secret is replaced by a mark that names
// its shape; without, all passes at once as it is.
func Shapes(w io.Writer, replace bool) *ShapeWriter {
	return &ShapeWriter{&shaped{to: w, replace: replace}}
}

// Counts returns how many there were of each shape, by its name. The caller must not
// change it.
func (s *shaped) Counts() map[string]int { return s.counts }

// Format keeps what is held from being printed.
func (s *shaped) Format(f fmt.State, _ rune) { io.WriteString(f, "[shape writer]") }

// Write implements [io.Writer].
func (s *shaped) Write(p []byte) (int, error) {
	if !s.replace {
		s.write(p)
	}
	written := 0
	for len(p) > 0 && s.err == nil {
		n := min(len(p), atOnce)
		s.held = append(s.held, p[:n]...)
		s.look(false)
		p = p[n:]
		written += n
	}
	return written, s.err
}

// Close passes on the rest. It does not close what is written to.
func (s *shaped) Close() error {
	s.look(true)
	clear(s.held)
	s.held, s.done, s.runs = s.held[:0], 0, [kindCount][maxParts]span{}
	return s.err
}

// lookBack is how much before a secret tells whether it begins there.
const lookBack = 6

// look takes what is held, as far as it can be judged; last says that nothing follows.
func (s *shaped) look(last bool) {
	at := s.done
	for at = next(s.held, at); at < len(s.held); at = next(s.held, at) {
		candidates := byFirst[s.held[at]]
		if candidates == nil || !beginsAfter(s.held[:at]) {
			at++
			continue
		}
		found, end := s.match(candidates, at, last)
		if end < 0 {
			break // more has to come
		}
		if found == nil {
			at++
			continue
		}
		if s.counts == nil {
			s.counts = make(map[string]int)
		}
		s.counts[found.name]++
		if s.replace {
			s.write(s.held[s.done:at])
			s.write([]byte("[redacted: " + found.name + "]"))
		}
		at, s.done = end, end
	}
	if s.replace {
		s.write(s.held[s.done:at])
	}
	drop := max(0, at-lookBack)
	n := copy(s.held, s.held[drop:])
	clear(s.held[n:])
	s.held, s.done = s.held[:n], at-drop
	for k := range s.runs {
		for i := range s.runs[k] {
			s.runs[k][i].from -= drop
			s.runs[k][i].to -= drop
		}
	}
}

// match returns the shape of what begins there, nil if it has none, and where it ends, -1
// if more has to come before that is known.
func (s *shaped) match(candidates []*shape, at int, last bool) (*shape, int) {
	for _, c := range candidates {
		switch end := s.fits(c.parts, at, last); {
		case end > 0 && bytes.HasPrefix(s.held[at+len(c.parts[0].text):], []byte(handle)):
			return nil, 0
		case end > 0:
			return c, end
		case end < 0:
			return nil, -1
		}
	}
	return nil, 0
}

// fits returns where the parts end, 0 if they are not there, and -1 if that is not known yet.
func (s *shaped) fits(parts []part, at int, last bool) int {
	for i, p := range parts {
		rest := s.held[at:]
		if len(rest) < len(p.text) && !last && bytes.HasPrefix([]byte(p.text), rest) {
			return -1
		}
		if !bytes.HasPrefix(rest, []byte(p.text)) {
			return 0
		}
		at += len(p.text)
		if p.of == nothing {
			continue
		}
		end := s.end(&s.runs[p.of][i], &kinds[p.of], at)
		if end-at > p.max {
			return 0
		}
		if end == len(s.held) && !last {
			return -1
		}
		if end-at < p.min {
			return 0
		}
		at = end
	}
	return at
}

// end returns up to where all is of a kind, and notes the run. What it looked at is not
// looked at again, so that the work is in proportion to the text, whatever is in it.
func (s *shaped) end(run *span, of *[256]bool, at int) int {
	if at < run.from || at > run.to {
		*run = span{at, at}
	}
	for run.to < len(s.held) && of[s.held[run.to]] {
		run.to++
	}
	return run.to
}

// beginsAfter reports whether something of its own can begin after text: at its start,
// after what is no part of a word, and after an escape that stands for such.
func beginsAfter(text []byte) bool {
	n := len(text)
	if n == 0 || !kinds[word][text[n-1]] || text[n-1] == '-' {
		return true
	}
	return n >= 2 && text[n-2] == '\\' && bytes.IndexByte([]byte("nrt"), text[n-1]) >= 0 ||
		n >= 3 && text[n-3] == '%' && isHex(text[n-2]) && isHex(text[n-1]) ||
		n >= 6 && text[n-6] == '\\' && text[n-5] == 'u' && isHex(text[n-4]) && isHex(text[n-3]) && isHex(text[n-2]) && isHex(text[n-1])
}

func isHex(c byte) bool { return c >= '0' && c <= '9' || c|0x20 >= 'a' && c|0x20 <= 'f' }

func (s *shaped) write(b []byte) {
	if len(b) > 0 && s.err == nil {
		_, s.err = s.to.Write(b)
	}
}
