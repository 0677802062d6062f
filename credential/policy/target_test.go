package policy

import (
	"errors"
	"net/url"
	"slices"
	"strings"
	"testing"
)

func TestTargetsThatTwoReadersCouldTakeForDifferentOnesAreRefused(t *testing.T) {
	t.Parallel()
	for target, want := range map[string]string{
		"":                                       "begin with a slash",
		"v1/models":                              "begin with a slash",
		"http://other/v1":                        "begin with a slash",
		"/v1/../admin":                           "dot segment",
		"/v1/./x":                                "dot segment",
		"/v1/..":                                 "dot segment",
		"/v1/%2e%2e/admin":                       "stands for itself",
		"/v1/%2E%2E/admin":                       "stands for itself",
		"/v1/.%2e/admin":                         "stands for itself",
		"/v1/..;/admin":                          "semicolon",
		"/v1/x;jsessionid=1":                     "semicolon",
		"/v1/x%3Bjsessionid=1":                   `encoded ';'`,
		`/v1\..\admin`:                           "0x5c",
		"/v1/..%5cadmin":                         `encoded '\\'`,
		"/v1%2fadmin":                            `encoded '/'`,
		"/v1/%2F/admin":                          `encoded '/'`,
		"/v1//admin":                             "empty segment",
		"//admin":                                "empty segment",
		"/%761/ok":                               "stands for itself",
		"/v1/%252e%252e/admin":                   "encoded twice",
		"/v1/%00":                                "control character",
		"/v1/%0d%0aHost:x":                       "control character",
		"/v1/\x00":                               "0x00",
		"/v1/ü":                                  "0xc3",
		"/v1/a b":                                "0x20",
		"/v1/%zz":                                "hexadecimal digits",
		"/v1/%2":                                 "hexadecimal digits",
		"/v1#fragment":                           "0x23",
		"/v1?":                                   "empty query",
		"/v1?=x":                                 "value without a key",
		"/v1?a=1&&b=2":                           "value without a key",
		"/v1?a=1;b=2":                            "0x3b",
		"/v1?%61=1":                              "encodes 'a' in a key",
		"/v1?a=%00":                              "control character",
		"/v1?a=%z":                               "hexadecimal digits",
		"/v1?a=1#b":                              "0x23",
		"/" + strings.Repeat("a/", 200):          "segments",
		"/" + strings.Repeat("a", 9000):          "bytes",
		"/?" + strings.Repeat("a=1&", 300) + "b": "keys",
	} {
		if _, err := ParseTarget(target, false); !errors.Is(err, ErrTarget) || !strings.Contains(err.Error(), want) {
			t.Errorf("%.60q: %v, want %q", target, err, want)
		}
	}
}

func TestTargetIsSentAsItIsAndReadOnce(t *testing.T) {
	t.Parallel()
	for target, want := range map[string]struct {
		segments []string
		query    []Pair
	}{
		"/":                       {nil, nil},
		"/v1/models":              {[]string{"v1", "models"}, nil},
		"/v1/models/":             {[]string{"v1", "models", ""}, nil},
		"/a%20b/%C3%BC/100%25":    {[]string{"a b", "ü", "100%"}, nil},
		"/x:y@z/(1)!$&'*+,=~":     {[]string{"x:y@z", "(1)!$&'*+,=~"}, nil},
		"/s?q=a+b&q=%26&e&v=a%2B": {[]string{"s"}, []Pair{{"q", "a b"}, {"q", "&"}, {"e", ""}, {"v", "a+"}}},
	} {
		got, err := ParseTarget(target, false)
		if err != nil || got.String() != target || !slices.Equal(got.Segments, want.segments) || !slices.Equal(got.Query, want.query) {
			t.Errorf("%s: %+v (%v), want %+v", target, got, err, want)
		}
	}
	got, err := ParseTarget("/projects/group%2Fname/x", true)
	if err != nil || !slices.Equal(got.Segments, []string{"projects", "group/name", "x"}) {
		t.Errorf("an encoded slash within a segment: %+v (%v)", got, err)
	}
	if _, err := ParseTarget("/projects/group%2F..%2Fname", true); err != nil {
		t.Errorf("dots beside an encoded slash are within their segment: %v", err)
	}
}

// FuzzTarget: what is accepted, the standard library reads the same way.
func FuzzTarget(f *testing.F) {
	for _, s := range []string{"/v1/models?limit=2", "/a%20b/%C3%BC?q=a+b&e", "/x/../y", "/%2e%2e", "/a?b=%zz"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		got, err := ParseTarget(s, false)
		if err != nil {
			if !errors.Is(err, ErrTarget) {
				t.Errorf("%q: %v", s, err)
			}
			return
		}
		u, err := url.ParseRequestURI(s)
		if err != nil {
			t.Fatalf("%q: the standard library refuses it: %v", s, err)
		}
		if path := "/" + strings.Join(got.Segments, "/"); u.Path != path || u.RequestURI() != s {
			t.Errorf("%q: has the path %q and %q, and is sent as %q", s, path, u.Path, u.RequestURI())
		}
		if strings.Contains(u.Path, "/../") || strings.Contains(u.Path, "//") {
			t.Errorf("%q has another path once it is normalised", s)
		}
		values, err := url.ParseQuery(u.RawQuery)
		if err != nil {
			t.Fatalf("%q: %v", s, err)
		}
		n := 0
		for _, p := range got.Query {
			if !slices.Contains(values[p.Key], p.Value) {
				t.Errorf("%q: %q=%q is %q", s, p.Key, p.Value, values[p.Key])
			}
		}
		for _, v := range values {
			n += len(v)
		}
		if n != len(got.Query) {
			t.Errorf("%q has %d values and %d", s, len(got.Query), n)
		}
	})
}
