-- The tables of a run. Names are part of the contract; columns may be added.
-- Nothing has an index: sort order and zone maps answer the dashboard's questions in 1-3 ms.

CREATE TABLE pair (
    pair_id      VARCHAR NOT NULL,   -- as in the source, unique
    pair_index   UINTEGER NOT NULL,  -- 0.. in file order
    prompt_id    VARCHAR NOT NULL,   -- hash of the conversation before the answers; pairs that share it share a cluster
    source       VARCHAR NOT NULL,
    split        VARCHAR NOT NULL,   -- 'train' or 'test'
    domain       VARCHAR NOT NULL,
    category     VARCHAR,
    prompt       VARCHAR NOT NULL,   -- readable text; several turns are separated by blank lines
    messages     VARCHAR NOT NULL,   -- JSON [{"role":..,"content":..}], what the chat template was given
    labels       VARCHAR NOT NULL,   -- JSON object: every other column of the source
    n_responses  UINTEGER NOT NULL,
    chosen_reward   DOUBLE,          -- best chosen answer
    rejected_reward DOUBLE,          -- best rejected answer
    margin       DOUBLE              -- lowest chosen minus highest rejected reward; > 0 means the model agrees
);

CREATE TABLE response (
    response_id  UINTEGER NOT NULL,  -- 0.. ordered by pair, chosen first
    pair_id      VARCHAR NOT NULL,
    pair_index   UINTEGER NOT NULL,
    side         VARCHAR NOT NULL,   -- 'chosen' or 'rejected'
    rank         USMALLINT NOT NULL, -- 0.. within its side
    text         VARCHAR NOT NULL,
    n_tokens     UINTEGER NOT NULL,  -- answer tokens, end-of-turn included
    n_boundary   UINTEGER NOT NULL,  -- sentence-boundary tokens among them
    token_start  UBIGINT NOT NULL,   -- first row in the token arrays
    truncated    BOOLEAN NOT NULL,   -- the answer was cut at max_length
    reward       DOUBLE NOT NULL,    -- of the feature head: the sum of its contributions
    model_reward DOUBLE              -- of the ordinary reward model the SAE stands beside; NULL when the head is the model
);

CREATE TABLE activation (            -- ordered by response_id, feature_id
    response_id  UINTEGER NOT NULL,
    feature_id   UINTEGER NOT NULL,
    last         FLOAT NOT NULL,     -- at the pooled end-of-turn token (SARM)
    mean         FLOAT NOT NULL,     -- mean over the answer's tokens
    max          FLOAT NOT NULL,     -- largest over the answer's tokens
    boundary_sum FLOAT NOT NULL      -- sum of positive values over boundary tokens (SAFER)
);

CREATE TABLE activation_by_feature ( -- the same rows, ordered by feature_id, max descending
    response_id  UINTEGER NOT NULL,
    feature_id   UINTEGER NOT NULL,
    last         FLOAT NOT NULL,
    mean         FLOAT NOT NULL,
    max          FLOAT NOT NULL,
    boundary_sum FLOAT NOT NULL
);

CREATE TABLE feature (
    feature_id   UINTEGER NOT NULL,
    weight       DOUBLE NOT NULL,    -- head weight, reward per unit of pooled activation
    weight_rank  UINTEGER NOT NULL,  -- 1 = largest |weight|
    density      DOUBLE NOT NULL,    -- share of answer tokens on which it is active
    mean_active  DOUBLE,             -- mean activation over tokens where active; NULL when never active
    max_active   DOUBLE,
    n_tokens     UBIGINT NOT NULL,   -- answer tokens on which it is active
    n_responses  UINTEGER NOT NULL,  -- answers in which it is active
    n_pairs      UINTEGER NOT NULL,  -- pairs in which it is active in at least one answer
    length_corr  DOUBLE,             -- Spearman correlation of its mean activation with answer length; NULL when active in < 30
    mean_contribution DOUBLE NOT NULL, -- mean over pairs of w (z_chosen - z_rejected), test and train
    alive        BOOLEAN NOT NULL    -- active at least once in the run
);

CREATE TABLE histogram (
    feature_id   UINTEGER NOT NULL,
    edges        FLOAT[] NOT NULL,   -- n + 1 edges, activation units
    counts       UINTEGER[] NOT NULL -- tokens per bin, active tokens only
);

CREATE TABLE context (               -- ordered by feature_id, band, rank
    feature_id   UINTEGER NOT NULL,
    response_id  UINTEGER NOT NULL,
    band         VARCHAR NOT NULL,   -- 'top', 'q4' (highest quarter) .. 'q1', 'random', 'near_miss'
    rank         USMALLINT NOT NULL, -- 0.. within its band
    start        UINTEGER NOT NULL,  -- first token, counted from the start of the answer
    peak         UINTEGER NOT NULL,  -- index in `tokens` of the token shown as the anchor
    tokens       VARCHAR[] NOT NULL,
    values       FLOAT[] NOT NULL    -- activation of this feature at each token, 0 where inactive
);

CREATE TABLE band (                  -- where a feature's quantile bands lie
    feature_id   UINTEGER NOT NULL,
    band         VARCHAR NOT NULL,   -- 'q4' .. 'q1'
    low          FLOAT NOT NULL,     -- activation interval
    high         FLOAT NOT NULL,
    share        DOUBLE NOT NULL     -- share of its active answers in the interval
);

CREATE TABLE salience (              -- ordered by slice, pooling, feature_id; one unit = one prompt (core/salience)
    feature_id   UINTEGER NOT NULL,
    slice        VARCHAR NOT NULL,   -- 'all', or column=value: 'split=train', 'domain=privacy', 'category=..', 'request=harmful'
    pooling      VARCHAR NOT NULL,   -- 'last', 'mean', 'max', 'boundary_sum'
    n_pairs      UINTEGER NOT NULL,  -- pairs in the slice
    n_prompts    UINTEGER NOT NULL,  -- prompts in the slice
    n_active     UINTEGER NOT NULL,  -- pairs of the slice in which it is active in at least one answer
    chosen_sum   DOUBLE NOT NULL,    -- sum of its positive pooled values over chosen answers (SAFER's h+)
    rejected_sum DOUBLE NOT NULL,    -- and over rejected answers (h-)
    s            DOUBLE,             -- SAFER's salience (h+ - h-) / (h+ + h- + C)
    effect       DOUBLE,             -- mean over prompts of the mean chosen - rejected difference, activation units
    ci_low       DOUBLE,             -- 95 % interval of the effect, clustered by prompt
    ci_high      DOUBLE,
    effect_size  DOUBLE,             -- effect / standard deviation of the prompts' differences
    p            DOUBLE,             -- sign-flip permutation p; NULL = not tested (n_active < 30)
    q            DOUBLE,             -- Benjamini-Hochberg over all tested features of the slice and pooling
    p_family     DOUBLE,             -- p against the largest statistic of any feature in the slice (max null)
    effect_length_adjusted DOUBLE,   -- the effect at equal length of both answers
    adjusted_low DOUBLE,             -- its 95 % interval
    adjusted_high DOUBLE,
    p_adjusted   DOUBLE,
    q_adjusted   DOUBLE,
    auc          DOUBLE,             -- chance that the chosen answer has more of it than the rejected one, ties one half
    auc_low      DOUBLE,
    auc_high     DOUBLE,
    effect_first DOUBLE,             -- effect on either half of the prompts
    effect_second DOUBLE,
    replication  VARCHAR             -- 'replicated', 'not replicated'; NULL = not significant on the first half
);

CREATE TABLE neighbour (             -- ordered by feature_id, kind, rank
    feature_id   UINTEGER NOT NULL,
    other_id     UINTEGER NOT NULL,
    kind         VARCHAR NOT NULL,   -- 'decoder' (cosine) or 'coactive' (Jaccard over answers)
    score        DOUBLE NOT NULL,
    rank         USMALLINT NOT NULL
);

CREATE TABLE layout (
    feature_id   UINTEGER NOT NULL,
    x            FLOAT NOT NULL,
    y            FLOAT NOT NULL,
    cluster      INTEGER NOT NULL    -- -1 = in no cluster
);

CREATE TABLE cluster (
    cluster      INTEGER NOT NULL,
    name         VARCHAR NOT NULL,   -- its most distinctive terms
    x            FLOAT NOT NULL,     -- where the name is drawn
    y            FLOAT NOT NULL,
    n_features   UINTEGER NOT NULL
);

CREATE TABLE label (
    feature_id   UINTEGER NOT NULL,
    source       VARCHAR NOT NULL,   -- 'offline', a model's name, or 'reviewer'
    text         VARCHAR NOT NULL,
    safety_rating UTINYINT,          -- 1..5; NULL = missing, never a guess
    detection_score DOUBLE,          -- balanced accuracy on held-out contexts; NULL = not tested
    detection_low DOUBLE,            -- 95 % interval
    detection_high DOUBLE,
    detection_n  UINTEGER,           -- held-out contexts behind the score
    fuzzing_score DOUBLE,            -- balanced accuracy at telling rightly from wrongly marked tokens; NULL = not tested
    fuzzing_low  DOUBLE,
    fuzzing_high DOUBLE,
    fuzzing_n    UINTEGER,
    model        VARCHAR NOT NULL
);

CREATE TABLE evaluation (
    benchmark    VARCHAR NOT NULL,   -- 'held-out', 'train', 'sae', 'probe', 'length', 'health', ...
    subset       VARCHAR NOT NULL,   -- domain, or 'all'
    metric       VARCHAR NOT NULL,
    value        DOUBLE,             -- NULL = could not be computed
    ci_low       DOUBLE,
    ci_high      DOUBLE,
    n            UBIGINT NOT NULL,   -- what the value is a figure of (pairs, tokens, latents)
    note         VARCHAR NOT NULL    -- how it was measured, one line
);

CREATE TABLE impact (                -- the run's own set and every baseline, refitted when the run was built
    plan         VARCHAR NOT NULL,   -- the plan's id
    direction    VARCHAR NOT NULL,   -- 'poison' or 'denoise'
    action       VARCHAR NOT NULL,   -- 'flip' or 'drop'
    strategy     VARCHAR NOT NULL,   -- 'set', 'random', 'margin', 'loss', 'length'; 'none' = nothing changed
    ratio        DOUBLE NOT NULL,    -- share of the training pairs that is changed
    seed         UINTEGER NOT NULL,
    domain       VARCHAR NOT NULL,   -- of the held-out pairs; 'all' = every one
    n            UINTEGER NOT NULL,  -- held-out pairs
    n_prompts    UINTEGER NOT NULL,
    accuracy     DOUBLE,
    accuracy_low DOUBLE,             -- 95 % interval, prompts drawn with replacement
    accuracy_high DOUBLE,
    mean_margin  DOUBLE,
    margin_low   DOUBLE,
    margin_high  DOUBLE,
    accuracy_change DOUBLE,          -- against the head fitted on unchanged pairs
    change_low   DOUBLE,             -- its 95 % interval, paired
    change_high  DOUBLE,
    kind         VARCHAR NOT NULL    -- 'preview' or 'retrained'
);

CREATE TABLE causal (                -- what taking a feature away does to margins, beside what attribution says
    feature_id   UINTEGER NOT NULL,
    method       VARCHAR NOT NULL,   -- 'head' (weight to 0, exact) or 'residual' (upper layers run again, SAE error kept)
    n_pairs      UINTEGER NOT NULL,  -- pairs measured, in all of which it is active
    n_prompts    UINTEGER NOT NULL,
    attribution  DOUBLE,             -- mean attribution to the margin over these pairs
    effect       DOUBLE,             -- mean margin with it minus without it
    ci_low       DOUBLE,             -- 95 %, clustered by prompt
    ci_high      DOUBLE,
    random_low   DOUBLE,             -- middle 95 % of the same over random features matched on density and |w|
    random_high  DOUBLE,
    n_random     UINTEGER NOT NULL,
    verdict      VARCHAR NOT NULL    -- 'verified' or 'correlated only'; a feature without a row was not checked
);
