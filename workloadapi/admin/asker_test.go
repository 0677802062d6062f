package admin

import (
	"net/http"
	"net/http/httptest"
	"testing"
)

func TestRequestIsOfWhoMadeItsConnection(t *testing.T) {
	t.Parallel()
	want := Asker{PID: 4211, UID: 4294967294, GID: 7}
	for _, tt := range []struct {
		name, remote string
		code         int
	}{
		{"known", want.String(), http.StatusOK},
		{"unnamed socket", "@", http.StatusForbidden},
		{"nothing", "", http.StatusForbidden},
		{"half of it", "process=1,user=0", http.StatusForbidden},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := httptest.NewRequest(http.MethodGet, "/v1/status", nil)
			r.RemoteAddr = tt.remote
			w := httptest.NewRecorder()
			ofAskers(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
				if got := askerOf(r); got != want {
					t.Errorf("asked by %+v, want %+v", got, want)
				}
			})).ServeHTTP(w, r)
			if w.Code != tt.code {
				t.Errorf("got %d, want %d", w.Code, tt.code)
			}
			if got := askerOf(r); tt.code != http.StatusOK && got.UID == 0 {
				t.Error("who is not known passes for root")
			}
		})
	}
}
