package main

import (
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

// Whoever opens the address in a browser finds the metrics.
func TestTheAddressLinksToItsMetrics(t *testing.T) {
	t.Parallel()
	a := &app{out: &output{w: io.Discard}}
	s, err := a.serveMetrics(t.Context(), metricsFlags{address: "127.0.0.1:0"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.close)
	get := func(path string) *httptest.ResponseRecorder {
		answer := httptest.NewRecorder()
		s.server.Handler.ServeHTTP(answer, httptest.NewRequestWithContext(t.Context(), http.MethodGet, path, http.NoBody))
		return answer
	}
	if page := get("/"); page.Code != http.StatusOK || !strings.Contains(page.Body.String(), `href="/metrics"`) {
		t.Errorf("/ answers %d: %s", page.Code, page.Body)
	}
	if page := get("/nosuch"); page.Code != http.StatusNotFound {
		t.Errorf("/nosuch answers %d", page.Code)
	}
}
