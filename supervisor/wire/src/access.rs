//! Who may call: bearer tokens, and the Host and Origin a browser names. Pure; knows headers only as strings.
