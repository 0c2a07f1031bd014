package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"github.com/tidemark-sync/tidemark"
	"github.com/tidemark-sync/tidemark/adapters/firestore"
)

const (
	tokenFileVariable = "TIDEMARK_FIREBASE_TOKEN_FILE"
	apiKeyVariable    = "TIDEMARK_FIREBASE_API_KEY"
)

// signedIn is the user whose refresh token is in a file; nil when the environment names
// none: then the credentials are an operator's. The file is read whenever a token is
// needed: the application writes it after a sign-in and removes it after a sign-out.
func signedIn() (firestore.TokenSource, error) {
	file, key := os.Getenv(tokenFileVariable), os.Getenv(apiKeyVariable)
	switch {
	case file == "" && key == "":
		return nil, nil //nolint:nilnil // no user is a choice
	case file == "":
		return nil, misuse("%s is set and %s is not: it names the file with the user's refresh token", apiKeyVariable, tokenFileVariable)
	case key == "":
		return nil, misuse("%s is set and %s is not: it is the web API key, in the project's settings at Firebase", tokenFileVariable, apiKeyVariable)
	}
	return firestore.RefreshTokens(firestore.Session{APIKey: key, RefreshToken: func(context.Context) (string, error) {
		text, err := readPrivate(setting{file, tokenFileVariable}, "token file", "")
		if errors.Is(err, fs.ErrNotExist) {
			return "", fmt.Errorf("%w: there is no file %s (%s): sign in again", tidemark.ErrSignedOut, plain(file), tokenFileVariable)
		}
		if err != nil {
			return "", fmt.Errorf("%w: %s", tidemark.ErrUnauthorized, err.Error()) // the usage was right
		}
		return strings.TrimSpace(text), nil
	}})
}
